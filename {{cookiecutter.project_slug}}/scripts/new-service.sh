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
root=$PWD

name='' type=poller description='' dry_run=false
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=true; shift ;;
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

# The locked one; without uv any that is installed.
cookiecutter=("$root/scripts/uv" run --quiet --frozen --project "$root" cookiecutter)
if ! uv --version >/dev/null 2>&1 && command -v cookiecutter >/dev/null; then cookiecutter=(cookiecutter); fi

scratch=$(mktemp -d)
is_new=false
# shellcheck disable=SC2317,SC2329  # called by the trap
clean_up() {
  local code=$?
  rm -rf "$scratch"
  # Rendered, and interrupted before it was wired: cookiecutter leaves that where it is.
  if [ "$code" != 0 ] && $is_new && [ ! -e "$root/tests/test_${name//-/_}.py" ]; then rm -rf "$root/services/${name:?}"; fi
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
# Its own configuration, so that the user's defaults for cookiecutter do not get in.
printf '{"replay_dir": "%s", "cookiecutters_dir": "%s"}\n' "$scratch" "$scratch" >"$scratch/config.yaml"

target=$root
if $dry_run; then
  # Here, since a version manager chooses the Python by the folder.
  if [ "${cookiecutter[0]}" != cookiecutter ]; then "$root/scripts/uv" sync --quiet --frozen; fi
  # A copy of what can change is enough to see what would.
  target=$scratch/repository
  mkdir -p "$target/services"
  (
    cd "$root"
    files=(scripts)
    for file in docker-compose*.yml .env.example .vscode/launch.json docs/topics.md tests; do
      if [ -e "$file" ]; then files+=("$file"); fi
    done
    tar -cf - "${files[@]}"
  ) | tar -xf - -C "$target"
  [ ! -e "$root/services/$name" ] || mkdir "$target/services/$name"
  cp -R "$target" "$scratch/before"
fi

if [[ $name =~ ^[a-z][a-z0-9-]*$ ]] && [ ! -e "$target/services/$name" ]; then is_new=true; fi
# cookiecutter takes a value on its command line for a Jinja template; these are plain text.
brace='{{"{"}}'
plain_name=${name//\{/$brace}
arguments=("service_name=$plain_name" "service_slug=$plain_name" "service_type=$type")
[ -z "$description" ] || arguments+=("description=${description//\{/$brace}")
(cd "$target" && NEW_SERVICE_VIA=script "${cookiecutter[@]}" "$root/templates/service" --no-input --output-dir services \
  --config-file "$scratch/config.yaml" "${arguments[@]}") >"$scratch/log" 2>&1 || {
  # What our own hooks say; cookiecutter's traceback tells nothing more.
  sed -e '/^Traceback/,/^[A-Za-z.]*Exception/d' -e '/^ERROR: Stopping generation/d' -e '/^Hook script failed/d' "$scratch/log" >&2
  exit 1
}

if $dry_run; then
  (cd "$scratch" && git --no-pager diff --no-index --src-prefix= --dst-prefix= before repository) |
    sed -E -e '/^(---|\+\+\+|diff --git) /s#(^| )(before|repository)/#\1#g' || true
  exit 0
fi
echo "Added services/$name:"
cat "$scratch/log"
echo "Next: make test, then make run SERVICE=$name or make up"
