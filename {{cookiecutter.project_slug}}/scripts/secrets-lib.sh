# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this use the variables
# What the scripts around .env.enc share, on top of lib.sh.
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

umask 077
root=$PWD

key=.sops/age-key.txt
public_key=.sops/age-key.pub
# sops guesses the type from the ending, and wrongly for `.enc`.
dotenv=(--input-type dotenv --output-type dotenv)

say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

work=''
remove_work() { if [ -n "$work" ]; then rm -rf "$work"; fi; }
trap remove_work EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Makes $work: a private folder next to the files that it becomes (a rename is atomic), ignored by
# git, removed however the script ends. sops keeps what its editor sees there, too.
make_work() {
  work=$(mktemp -d .env.tmp.XXXXXX)
  export TMPDIR=$root/$work
}

need_sops() {
  command -v sops >/dev/null || die "sops is missing: brew install sops, or a package from https://github.com/getsops/sops/releases (3.11 or newer)"
  [ -f .sops.yaml ] || die ".sops.yaml is missing: scripts/init-secrets.sh makes it, with a key"
}

# A key that the environment names comes first; without any, sops looks in its own places.
use_key() {
  if [ -z "${SOPS_AGE_KEY_FILE:-}${SOPS_AGE_KEY:-}${SOPS_AGE_KEY_CMD:-}" ] && [ -f "$key" ]; then
    export SOPS_AGE_KEY_FILE=$root/$key
  fi
}

# own_recipients KEY-FILE: its public keys
own_recipients() {
  [ -f "$1" ] || return 0
  age-keygen -y "$1" 2>/dev/null || sed -n 's/^# public key: //p' "$1"
}

recipients_in_config() { sed 's/#.*//' "$1" | grep -oE 'age1[0-9a-z]+' | LC_ALL=C sort -u; }
recipients_in_file() { sed -n 's/^sops_age__list_[0-9]*__map_recipient=//p' "$1" | LC_ALL=C sort -u; }

# make_key FILE: a new age key, by age-keygen or by pyrage in $SETUP_PYTHON; false when neither is there
make_key() {
  if command -v age-keygen >/dev/null; then
    age-keygen -o "$1" 2>/dev/null
  elif "${SETUP_PYTHON:-python3}" -c 'import pyrage' 2>/dev/null; then
    "${SETUP_PYTHON:-python3}" -c '
from pyrage import x25519
identity = x25519.Identity.generate()
print(f"# public key: {identity.to_public()}\n{identity}")' >"$1"
  else
    return 1
  fi
}
how_to_get_age="age is missing: apt install age, brew install age, or https://github.com/FiloSottile/age"

without_blank_lines() { awk NF "$1"; }

# check_dotenv FILE: prints the lines that sops would refuse or change, by number, never what they hold
check_dotenv() {
  LC_ALL=C awk '
    function bad(text) { printf "  line %d: %s\n", NR, text; found = 1 }
    /\r$/ { bad("ends in CRLF; save the file with LF line ends"); next }
    /^[ \t]*$/ || /^#/ { next }
    /^[ \t]/ { bad("begins with a space"); next }
    !/=/ { bad("has no =; a value over several lines is written on one, with \\n"); next }
    {
      name = substr($0, 1, index($0, "=") - 1)
      value = substr($0, length(name) + 2)
      sub(/^export[ \t]+/, "", name)
      quote = substr(value, 1, 1)
      if (name ~ /[ \t]$/) bad("has a space before the =")
      else if (name !~ /^[A-Za-z_][A-Za-z0-9_]*$/) bad("has no valid name before the =")
      else if (name ~ /^sops_/) bad("has a name that begins with sops_, which sops keeps for itself")
      else if (name ~ /_unencrypted$/) bad("has a name that ends in _unencrypted, which sops leaves readable")
      else if (name in line) bad("has the same name as line " line[name])
      else if ((quote == "\"" || quote == "\047") && index(substr(value, 2), quote) == 0) {
        bad("opens a quote and does not close it; a value over several lines is written on one, with \\n")
        exit
      }
      if (!(name in line)) line[name] = NR
    }
    END { exit found }' "$1"
}

# check_reading FILE: prints the lines that Compose and Python read differently, by number
check_reading() {
  LC_ALL=C awk '
    /^[ \t]*$/ || /^#/ || !/=/ { next }
    {
      value = substr($0, index($0, "=") + 1)
      if (value ~ /^\047[^\047\\]*\047$/ || value ~ /^"[^"\\$]*"$/ || value ~ /^[^\047"\\$#`]*$/) next
      printf "  line %d\n", NR
      found = 1
    }
    END { exit found }' "$1"
}

# check_encrypted FILE: prints what in an .env.enc is not encrypted, by line
check_encrypted() {
  LC_ALL=C awk '
    function bad(text) { printf "  line %d: %s\n", NR, text; found = 1 }
    /^[ \t]*$/ || /^#ENC\[AES256_GCM,.*\]$/ || /^[^=]+=(ENC\[AES256_GCM,.*\])?$/ && !/^sops_/ { next }
    /^sops_(age|pgp|kms|gcp_kms|azure_kv|hc_vault|hckms)__list_[0-9]+__map_/ { next }
    /^sops_mac=ENC\[AES256_GCM,.*\]$/ { mac = 1; next }
    /^sops_(lastmodified|version|shamir_threshold|mac_only_encrypted)=/ { next }
    /^sops_(un)?encrypted_(suffix|regex|comment_regex)=/ { next }
    { bad("is not encrypted") }
    END {
      if (!mac && !found) { print "  it has no seal of sops (sops_mac): cut short, or never encrypted"; found = 1 }
      exit found
    }' "$1"
}

# run_sops ARGUMENTS...: sops on a file of values; a failure is explained, and ends the script
run_sops() {
  local code=0
  sops --config "${config:-.sops.yaml}" "$@" 2>"$work/sops.log" || code=$?
  case $code in
    0) ;;
    128) explain_key ;;
    25 | 51) die ".env.enc was changed by hand or is damaged (sops exit $code). Take a good one: git restore .env.enc, or git log -- .env.enc" ;;
    *) cat "$work/sops.log" >&2; die "sops failed (exit $code); nothing was changed" ;;
  esac
}

explain_key() {
  local mine recipient
  mine=$(own_recipients "${SOPS_AGE_KEY_FILE:-$key}")
  {
    if [ -z "${SOPS_AGE_KEY_FILE:-}${SOPS_AGE_KEY:-}${SOPS_AGE_KEY_CMD:-}" ]; then
      say "No age key: $key is missing."
      say "Put your copy of it there, or make a new one: scripts/init-secrets.sh"
    elif [ -n "${SOPS_AGE_KEY_FILE:-}" ] && [ ! -f "$SOPS_AGE_KEY_FILE" ]; then
      say "No age key: SOPS_AGE_KEY_FILE names $SOPS_AGE_KEY_FILE, which is missing."
    else
      say "Your key does not open .env.enc${SOPS_AGE_KEY_FILE:+ (${SOPS_AGE_KEY_FILE#"$root/"})}."
    fi
    say ".env.enc is encrypted for:"
    for recipient in $(recipients_in_file .env.enc); do say "  $recipient"; done
    say "One of them can let you in, and push .sops.yaml and .env.enc:"
    say "  scripts/secrets-recipients.sh add ${mine:-YOUR_PUBLIC_KEY}"
  } >&2
  exit 1
}

# open_env_enc FILE: decrypts .env.enc into FILE, or ends the script with the reason
open_env_enc() {
  local problems
  [ -f .env.enc ] || die ".env.enc is missing: scripts/secrets-encrypt.sh makes it from .env"
  if ! problems=$(check_encrypted .env.enc); then
    die ".env.enc is not what sops wrote:"$'\n'"$problems"$'\n'"Take a good one: git restore .env.enc, or git log -- .env.enc"
  fi
  use_key
  run_sops decrypt "${dotenv[@]}" .env.enc >"$1"
}

# in_step: whether .env.enc holds what .env holds; 2 when it cannot be opened. Needs $work.
in_step() {
  use_key
  sops --config .sops.yaml decrypt "${dotenv[@]}" .env.enc >"$work/in-step" 2>/dev/null || return 2
  without_blank_lines .env | cmp -s - "$work/in-step"
}
