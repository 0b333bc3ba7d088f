#!/usr/bin/env bash
# Tells who can open .env.enc, whether your key does, whether .env is in step, and what is missing.
# Exit 1 when something has to be repaired. No value is ever printed.
#
# Usage: scripts/secrets-check.sh [--stale | --encrypted FILE...]
#   --stale      only warn when .env is newer than .env.enc and holds something else
#   --encrypted  only check that these files are encrypted
set -euo pipefail
# shellcheck source=scripts/secrets-lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/secrets-lib.sh"

failed=0
good() { say "ok    $*"; }
warn() { say "warn  $*"; }
fail() {
  say "fail  $*"
  failed=1
}

check_stale() {
  if [ ! -f .env ] || [ ! -f .env.enc ]; then return; fi
  local code=0
  in_step || code=$?
  if [ "$code" = 0 ]; then
    if [ "$mode" = all ]; then good ".env is in step with .env.enc"; fi
  elif [ "$code" = 2 ]; then
    # Said already, or of no use to somebody without sops or key.
    return
  elif [ .env -nt .env.enc ]; then
    warn ".env is newer than .env.enc: scripts/secrets-encrypt.sh brings it in step"
  elif [ "$mode" = all ]; then
    warn ".env differs from .env.enc, which is newer: scripts/secrets-decrypt.sh brings it in step"
  fi
}

check_key() {
  use_key
  if [ -f "$key" ]; then
    case $(ls -l "$key") in
      -r?-------*) good "$key is there, for you alone" ;;
      *) fail "$key can be read by others: chmod 600 $key" ;;
    esac
    if command -v git >/dev/null && git rev-parse --git-dir >/dev/null 2>&1 && ! git check-ignore --quiet "$key"; then
      fail "$key is not ignored by git: add .sops/ to .gitignore"
    fi
  elif [ -n "${SOPS_AGE_KEY_FILE:-}${SOPS_AGE_KEY:-}${SOPS_AGE_KEY_CMD:-}" ]; then
    good "the key is the one that the environment names"
  else
    warn "no age key ($key): put your copy there, or run scripts/init-secrets.sh"
  fi
}

check_env() {
  local problems name names=''
  if [ ! -f .env ]; then
    warn "no .env: scripts/$([ -f .env.enc ] && echo secrets-decrypt || echo init-secrets).sh makes one"
    return
  fi
  case $(ls -l .env) in
    -r?-------*) ;;
    *) fail ".env can be read by others: chmod 600 .env" ;;
  esac
  problems=$(check_dotenv .env) || fail "sops cannot keep these lines of .env:"$'\n'"$problems"
  problems=$(check_reading .env) ||
    fail "Compose and Python read these lines of .env differently; write the value in single quotes, without ' and \\:"$'\n'"$problems"
  if [ -f .env.example ]; then
    while IFS= read -r name; do
      grep -qE "^(export[[:space:]]+)?$name=" .env || names="$names $name"
    done < <(sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' .env.example)
    if [ -n "$names" ]; then warn "in .env.example, not in .env:$names"; fi
  fi
}

check_env_enc() {
  local problems
  if [ ! -f .env.enc ]; then
    warn "no .env.enc: scripts/secrets-encrypt.sh makes it from .env"
    return
  fi
  if ! problems=$(check_encrypted .env.enc); then
    fail ".env.enc is not what sops wrote:"$'\n'"$problems"
    return
  fi
  good ".env.enc is encrypted"
  if [ -f .sops.yaml ] && [ "$(recipients_in_config .sops.yaml)" != "$(recipients_in_file .env.enc)" ]; then
    fail ".env.enc is not for the recipients in .sops.yaml: scripts/secrets-recipients.sh sync"
  fi
  if ! command -v sops >/dev/null; then
    warn "sops is missing, so nothing more about .env.enc: brew install sops, or https://github.com/getsops/sops/releases"
    return
  fi
  if (open_env_enc "$work/values") 2>"$work/reason"; then
    good "your key opens .env.enc"
  else
    fail "$(cat "$work/reason")"
  fi
  check_stale
}

mode=all
case ${1:-} in
  '') ;;
  --stale)
    no_arguments "${@:2}"
    mode=stale
    make_work
    check_stale
    exit 0
    ;;
  --encrypted)
    shift
    [ $# -gt 0 ] || bad "The files are missing"
    for file in "$@"; do
      [ -f "$file" ] || die "There is no file $file"
      problems=$(check_encrypted "$file") || fail "$file is in the clear. Encrypt it (scripts/secrets-encrypt.sh), or take it out of the commit: git rm --cached -- '$file'"$'\n'"$problems"
    done
    exit "$failed"
    ;;
  *) bad "Unknown option $1" ;;
esac

for left in .env.tmp.*; do
  if [ -e "$left" ]; then warn "$left was left by a run that was killed, and may hold values: rm -r $left"; fi
done
make_work
check_key
if [ -f .sops.yaml ]; then
  say "      recipients:"
  scripts/secrets-recipients.sh list 2>&1 | sed 's/^/        /' || failed=1
else
  warn "no .sops.yaml: scripts/init-secrets.sh makes it, with a key"
fi
check_env_enc
check_env
exit "$failed"
