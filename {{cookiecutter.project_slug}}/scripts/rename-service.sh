#!/usr/bin/env bash
# Rename a service. `scripts/rename-service.sh --help` shows the options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/uv run --quiet --frozen python scripts/services.py rename "$@"
