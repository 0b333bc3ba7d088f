#!/usr/bin/env bash
# Open the values of .env.enc in $EDITOR and encrypt what you save.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/uv run --quiet --frozen python scripts/manage_secrets.py edit "$@"
