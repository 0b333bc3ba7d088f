#!/usr/bin/env bash
# Makes what is missing of: an age key of your own, .sops.yaml, a first .env. Replaces nothing.
# Exit code 3: skipped, because a tool is missing that the message names.
#
# Usage: scripts/init-secrets.sh
set -euo pipefail
# shellcheck source=scripts/secrets-lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/secrets-lib.sh"
no_arguments "$@"

made='' ask=''
note() { made="$made${made:+, }$1"; }
# keep FILE NAME: FILE becomes NAME, unless that has come into being meanwhile
keep() { mv -n "$1" "$2" 2>/dev/null || [ -e "$2" ]; }
random_password() { head -c 512 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | cut -c 1-32; }

make_work

# With an .env.enc, .env comes from there.
if [ ! -e .env ] && [ ! -e .env.enc ] && [ -f .env.example ]; then
  above=''
  while IFS= read -r line || [ -n "$line" ]; do
    case $above in
      "#"*"random in a first .env"*) line="${line%%=*}='$(random_password)'" ;;
    esac
    printf '%s\n' "$line"
    above=$line
  done <.env.example >"$work/.env"
  keep "$work/.env" .env
  note ".env with random secrets for the containers"
fi

if [ ! -e "$key" ]; then
  if ! make_key "$work/age-key.txt"; then
    say "no age key${made:+, but $made}. $how_to_get_age" >&2
    exit 3
  fi
  mkdir -p .sops
  keep "$work/age-key.txt" "$key"
  note "$key (back it up in a password manager)"
fi
recipient=$(own_recipients "$key")
[ -n "$recipient" ] || die "$key holds no age key: move it away, then run this again"
# The one of a key that was lost may be there still.
if [ "$(cat "$public_key" 2>/dev/null)" != "$recipient" ]; then
  say "$recipient" >"$work/age-key.pub"
  mv "$work/age-key.pub" "$public_key"
fi

if [ ! -e .sops.yaml ]; then
  name=$(git config user.name 2>/dev/null | tr -d '[:cntrl:]' || true)
  cat >"$work/.sops.yaml" <<END
# Who can open .env.enc: public age keys. scripts/secrets-recipients.sh adds and removes them.
creation_rules:
  - path_regex: (^|/)\.env\.enc$
    age:
      - $recipient${name:+ # $name}
END
  chmod 644 "$work/.sops.yaml"
  keep "$work/.sops.yaml" .sops.yaml
  note ".sops.yaml"
elif ! recipients_in_config .sops.yaml | grep -qxF -- "$recipient"; then
  ask="Your key opens nothing yet: ask a recipient to run scripts/secrets-recipients.sh add $recipient"
fi

if [ -n "$made" ]; then
  say "made $made"
elif [ -e .env ]; then
  say "already there: key, .sops.yaml and .env"
else
  say "already there: key and .sops.yaml; scripts/secrets-decrypt.sh makes .env"
fi
if [ -n "$ask" ]; then say "$ask"; fi
