#!/usr/bin/env bash
# Opens the values of .env.enc in $EDITOR and encrypts what you save.
#
# Usage: scripts/secrets-edit.sh
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
no_arguments "$@"
exec scripts/uv run --quiet --frozen python scripts/manage_secrets.py edit
