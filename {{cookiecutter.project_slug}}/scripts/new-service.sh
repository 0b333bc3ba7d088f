#!/usr/bin/env bash
# Adds a service to this repository.
#
# Usage: scripts/new-service.sh NAME [--type TYPE] [--description TEXT] [--dry-run]
#   NAME           lower-case letters, digits and hyphens, for example soil-moisture
#   --type         poller (default), subscriber or http-api
#   --description  one line
#   --dry-run      show what would change, and change nothing
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' type=poller description='' options=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) options+=("$1"); shift ;;
    --type | --description)
      [ $# -ge 2 ] || bad "$1 needs a value"
      if [ "$1" = --type ]; then type=$2; else description=$2; fi
      shift 2 ;;
    -*) bad "Unknown option $1" ;;
    *) [ -z "$name" ] || bad "One name only: $name or $1"; name=$1; shift ;;
  esac
done
[ -n "$name" ] || bad "The name is missing"
case $name in */* | .*) bad "The name is no path: $name" ;; esac
case $type in poller | subscriber | http-api) ;; *) bad "Unknown type $type" ;; esac
if [ -e "services/$name" ]; then
  echo "services/$name exists already. If its addition was interrupted, first run scripts/remove-service.sh $name" >&2
  exit 1
fi

# The locked one; without uv any that is installed.
cookiecutter=(scripts/uv run --quiet --frozen cookiecutter)
if ! uv --version >/dev/null 2>&1 && command -v cookiecutter >/dev/null; then
  cookiecutter=(cookiecutter)
else
  # Where it has to be fetched, this says so now.
  scripts/uv --version >/dev/null
fi

scratch=$(mktemp -d)
# shellcheck disable=SC2317,SC2329  # called by the trap
clean_up() {
  local code=$?
  trap '' HUP INT TERM
  rm -rf "$scratch"
  # Added, wholly or in part: whoever ended this does not expect it.
  if [ "$code" != 0 ] && [ -e "services/$name" ]; then
    echo "Interrupted: taking services/$name away again" >&2
    scripts/remove-service.sh "$name" --yes >/dev/null || echo "That failed; by hand: scripts/remove-service.sh $name" >&2
  fi
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
# Its own configuration, so that the user's defaults for cookiecutter do not get in.
printf '{"replay_dir": "%s", "cookiecutters_dir": "%s"}\n' "$scratch" "$scratch" >"$scratch/config.yaml"

# cookiecutter takes a value on its command line for a Jinja template; these are plain text.
brace='{{"{"}}'
plain_name=${name//\{/$brace}
answers=("service_name=$plain_name" "service_slug=$plain_name" "service_type=$type")
if [ -n "$description" ]; then
  answers+=("description=${description//\{/$brace}")
  options+=(--description)
fi
# Rendered elsewhere, and wired in by the template's hook. Its output is waited for, so that nothing
# goes on when cookiecutter alone has been ended.
export NEW_SERVICE_REPOSITORY=$PWD NEW_SERVICE_OPTIONS="${options[*]-}"
log=$("${cookiecutter[@]}" templates/service --no-input --output-dir "$scratch/services" \
  --config-file "$scratch/config.yaml" "${answers[@]}" 2>&1) || {
  code=$?
  # What our own hooks say; cookiecutter's traceback tells nothing more.
  said=$(sed -e '/^Traceback/,/^[A-Za-z.]*Exception/d' -e '/^ERROR: Stopping generation/d' -e '/^Hook script failed/d' <<<"$log")
  printf '%s\n' "${said:-cookiecutter ended with exit code $code: ${log##*$'\n'}}" >&2
  exit 1
}

# From here on it stays, also if nobody reads what is printed.
trap 'rm -rf "$scratch"' EXIT
case " ${options[*]-} " in *" --dry-run "*) printf '%s\n' "$log"; exit ;; esac
echo "Added services/$name:"
printf '%s\n' "$log"
echo "Next: make test, then make run SERVICE=$name or make up"
