#!/usr/bin/env bash
# Add a service, or finish an addition that was interrupted. `scripts/new-service.sh --help` shows the options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/uv run --quiet --frozen python scripts/services.py new "$@"
