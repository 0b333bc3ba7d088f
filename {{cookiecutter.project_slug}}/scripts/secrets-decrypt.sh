#!/usr/bin/env bash
# Decrypt .env.enc to .env. Other values in .env are kept in .env.previous.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/uv run --quiet --frozen python scripts/manage_secrets.py decrypt "$@"
