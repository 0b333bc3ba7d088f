#!/usr/bin/env bash
# Who can open .env.enc. .sops.yaml and .env.enc change together or not at all.
#
# Usage: scripts/secrets-recipients.sh list
#        scripts/secrets-recipients.sh add PUBLIC-KEY [NAME]
#        scripts/secrets-recipients.sh remove PUBLIC-KEY
#        scripts/secrets-recipients.sh rotate      a new key of your own in place of the old one
#        scripts/secrets-recipients.sh sync        .env.enc as .sops.yaml says, after an edit by hand
set -euo pipefail
# shellcheck source=scripts/secrets-lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/secrets-lib.sh"

valid() {
  case $1 in
    AGE-SECRET-KEY-*) die "That is a secret key: keep it to yourself. The public one begins with age1." ;;
  esac
  [[ $1 =~ ^age1[0-9a-z]{50,}$ ]] || die "Not an age public key (age1...): $1"
  if command -v age >/dev/null && ! age --encrypt --recipient "$1" </dev/null >/dev/null 2>&1; then
    die "Not an age public key, a letter of it is wrong: $1"
  fi
}

listed() { grep -qxF -- "$1" <<<"$before"; }
# A key file may hold several.
is_mine() { grep -qxF -- "$1" <<<"$mine"; }

# reencrypt: for the recipients of $work/.sops.yaml, into $work/.env.enc. The values get a new key
# of their own, so that who was removed cannot open what comes later.
reencrypt() {
  [ -f .env.enc ] || return 0
  local problems config=$work/.sops.yaml
  open_env_enc "$work/values"
  cp .env.enc "$work/.env.enc"
  run_sops updatekeys --yes --input-type dotenv "$work/.env.enc" >/dev/null
  # The new key is not among the recipients of before, nor the old one among those of now.
  if [ -f "$work/age-key.txt" ]; then export SOPS_AGE_KEY_FILE=$root/$work/age-key.txt; fi
  run_sops rotate --in-place "${dotenv[@]}" "$work/.env.enc"
  problems=$(check_encrypted "$work/.env.enc") || die "sops left something readable; nothing was changed:"$'\n'"$problems"
  chmod 644 "$work/.env.enc"
}

# No signal between the renames.
replace() {
  trap '' HUP INT TERM
  if [ -f "$work/.env.enc" ]; then mv "$work/.env.enc" .env.enc; fi
  chmod 644 "$work/.sops.yaml"
  mv "$work/.sops.yaml" .sops.yaml
}

# expect RECIPIENTS: the edited .sops.yaml holds these, or it has a shape of its own
expect() {
  [ "$(recipients_in_config "$work/.sops.yaml")" = "$(awk NF <<<"$1" | LC_ALL=C sort -u)" ] ||
    die "Cannot edit this .sops.yaml: change it by hand, then run scripts/secrets-recipients.sh sync"
}

[ $# -gt 0 ] || bad "What to do is missing"
command=$1
shift
[ -f .sops.yaml ] || die ".sops.yaml is missing: scripts/init-secrets.sh makes it, with a key"
if [ "$command" != list ] && [ -f .env.enc ]; then need_sops; fi
make_work
use_key
mine=$(own_recipients "${SOPS_AGE_KEY_FILE:-$key}")
before=$(recipients_in_config .sops.yaml) || die ".sops.yaml names no age key: put one in by hand, as scripts/init-secrets.sh does in a new one"
to_commit=.sops.yaml
if [ -f .env.enc ]; then to_commit=".sops.yaml and .env.enc"; fi

case $command in
  list)
    no_arguments "$@"
    grep -E '^[^#]*age1[0-9a-z]' .sops.yaml | while IFS= read -r line; do
      recipient=$(grep -oE 'age1[0-9a-z]+' <<<"$line" | head -n 1)
      name=''
      case $line in *'#'*) name=${line#*#} ;; esac
      if is_mine "$recipient"; then name="$name (you)"; fi
      say "$recipient$name"
    done
    ;;
  add)
    [ $# -ge 1 ] || bad "The public key is missing"
    recipient=$1
    shift
    valid "$recipient"
    if listed "$recipient"; then
      say "A recipient already: $recipient"
      exit 0
    fi
    name=$(tr -d '[:cntrl:]' <<<"$*")
    ENTRY="- $recipient${name:+ # $name}" awk '
      { text[NR] = $0 }
      /^[ ]*- age1[0-9a-z]/ { last = NR; indent = $0; sub(/-.*/, "", indent) }
      END {
        for (i = 1; i <= NR; i++) {
          print text[i]
          if (i == last) print indent ENVIRON["ENTRY"]
        }
      }' .sops.yaml >"$work/.sops.yaml"
    expect "$before"$'\n'"$recipient"
    reencrypt
    replace
    say "Added $recipient. Commit $to_commit."
    ;;
  remove)
    [ $# -eq 1 ] || bad "One public key is needed"
    recipient=$1
    valid "$recipient"
    if ! listed "$recipient"; then
      say "Not a recipient: $recipient"
      exit 0
    fi
    [ "$before" != "$recipient" ] || die "The only recipient: without it nobody could open .env.enc"
    ! is_mine "$recipient" || die "That is your own key: another recipient has to remove it"
    grep -vE "^[ ]*- $recipient([^0-9a-z]|$)" .sops.yaml >"$work/.sops.yaml"
    expect "${before/$recipient/}"
    reencrypt
    replace
    say "Removed $recipient. Commit $to_commit."
    say "It still opens the versions in git's history: change the passwords and tokens themselves, too."
    ;;
  rotate)
    no_arguments "$@"
    [ "${SOPS_AGE_KEY_FILE:-}" = "$root/$key" ] ||
      die "Only $key can be rotated, and only when the environment names no other key"
    case $mine in *$'\n'*) die "$key holds several keys: leave one in it, then try again" ;; esac
    listed "$mine" || die "Your key is no recipient: $mine"
    make_key "$work/age-key.txt" || die "$how_to_get_age"
    new=$(own_recipients "$work/age-key.txt")
    sed "s/$mine/$new/" .sops.yaml >"$work/.sops.yaml"
    expect "${before/$mine/}"$'\n'"$new"
    reencrypt
    say "$new" >"$work/age-key.pub"
    # Both keys are on the disk at every moment; the old one opens the versions in git's history.
    old=.sops/age-key-$(cut -c 1-12 <<<"$mine").txt
    cp "$key" "$old"
    trap '' HUP INT TERM
    mv "$work/age-key.txt" "$key"
    mv "$work/age-key.pub" "$public_key"
    replace
    say "Your key is now $new; the old one is kept as $old. Back up $key, commit $to_commit."
    ;;
  sync)
    no_arguments "$@"
    cp .sops.yaml "$work/.sops.yaml"
    if [ ! -f .env.enc ] || [ "$before" = "$(recipients_in_file .env.enc)" ]; then
      say "In step already"
      exit 0
    fi
    reencrypt
    replace
    say ".env.enc is now for the recipients in .sops.yaml. Commit both."
    ;;
  *) bad "Unknown command $command" ;;
esac
