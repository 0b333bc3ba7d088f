#!/usr/bin/env bash
# Encrypts .env to .env.enc for the recipients in .sops.yaml. What did not change keeps its
# ciphertext, so a diff of .env.enc shows which names changed.
#
# Usage: scripts/secrets-encrypt.sh
set -euo pipefail
# shellcheck source=scripts/secrets-lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/secrets-lib.sh"
no_arguments "$@"

[ -f .env ] || die ".env is missing: scripts/init-secrets.sh makes one from .env.example"
need_sops
problems=$(check_dotenv .env) || die "Nothing was encrypted. In .env:"$'\n'"$problems"

make_work
without_blank_lines .env >"$work/values"
[ -s "$work/values" ] || die "Nothing was encrypted: .env is empty"

if [ -f .env.enc ]; then
  # Whoever cannot read the present values would throw them away.
  open_env_enc "$work/present"
fi
if [ -f .env.enc ] && [ "$(recipients_in_config .sops.yaml)" = "$(recipients_in_file .env.enc)" ]; then
  if cmp -s "$work/values" "$work/present"; then
    say ".env.enc is in step with .env already"
    exit 0
  fi
  cp .env.enc "$work/.env.enc"
  # An editor that only puts the new values in place: sops encrypts what differs.
  SOPS_EDITOR="cp $work/values" EDITOR="cp $work/values" run_sops edit "${dotenv[@]}" "$work/.env.enc"
else
  run_sops encrypt --filename-override .env.enc "${dotenv[@]}" "$work/values" >"$work/.env.enc"
fi

problems=$(check_encrypted "$work/.env.enc") || die "sops left something readable; .env.enc stays as it was:"$'\n'"$problems"
chmod 644 "$work/.env.enc"
mv "$work/.env.enc" .env.enc
say "Encrypted .env to .env.enc for $(recipients_in_file .env.enc | wc -l | tr -d ' ') recipient(s). Commit .env.enc."
