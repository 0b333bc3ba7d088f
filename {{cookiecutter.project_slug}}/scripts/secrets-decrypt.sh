#!/usr/bin/env bash
# Decrypts .env.enc to .env. An .env with other values is kept as .env.previous.
#
# Usage: scripts/secrets-decrypt.sh
set -euo pipefail
# shellcheck source=scripts/secrets-lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/secrets-lib.sh"
no_arguments "$@"

need_sops
make_work
open_env_enc "$work/.env"

if [ -f .env ] && without_blank_lines .env | cmp -s - "$work/.env"; then
  chmod 600 .env
  say ".env is in step with .env.enc already"
  exit 0
fi
kept=''
if [ -f .env ]; then
  cp .env "$work/.env.previous"
  mv "$work/.env.previous" .env.previous
  kept="; the one before is .env.previous"
fi
mv "$work/.env" .env
say "Decrypted .env.enc to .env$kept"
