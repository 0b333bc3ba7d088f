#!/usr/bin/env bash
# Encrypt .env to .env.enc for the recipients in .sops.yaml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec scripts/uv run --quiet --frozen python scripts/manage_secrets.py encrypt "$@"
