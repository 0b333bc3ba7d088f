#!/usr/bin/env bash
# Encrypts .env to .env.enc for the recipients in .sops.yaml.
#
# Usage: scripts/secrets-encrypt.sh
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
no_arguments "$@"
exec scripts/uv run --quiet --frozen python scripts/manage_secrets.py encrypt
