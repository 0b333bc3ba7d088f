#!/usr/bin/env bash
# Decrypts .env.enc to .env. Other values in .env are kept in .env.previous.
#
# Usage: scripts/secrets-decrypt.sh
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
no_arguments "$@"
exec scripts/uv run --quiet --frozen python scripts/manage_secrets.py decrypt
