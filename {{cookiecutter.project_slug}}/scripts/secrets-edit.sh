#!/usr/bin/env bash
# Opens the values of .env.enc in $EDITOR and encrypts what you save.
#
# Usage: scripts/secrets-edit.sh
set -euo pipefail
# shellcheck source=scripts/secrets-lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/secrets-lib.sh"
no_arguments "$@"

need_sops
make_work
open_env_enc "$work/before"
cp .env.enc "$work/.env.enc"

code=0
sops --config .sops.yaml edit "${dotenv[@]}" "$work/.env.enc" || code=$?
case $code in
  0) ;;
  200) say "Nothing changed"; exit 0 ;;
  *) die "sops failed (exit $code); .env.enc stays as it was" ;;
esac

run_sops decrypt "${dotenv[@]}" "$work/.env.enc" >"$work/after"
problems=$(check_dotenv "$work/after") || die ".env.enc stays as it was. In what you saved:"$'\n'"$problems"
problems=$(check_encrypted "$work/.env.enc") || die "sops left something readable; .env.enc stays as it was:"$'\n'"$problems"

chmod 644 "$work/.env.enc"
mv "$work/.env.enc" .env.enc
say "Changed .env.enc. Commit it, and bring .env in step: scripts/secrets-decrypt.sh"
