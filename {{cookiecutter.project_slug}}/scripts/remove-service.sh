#!/usr/bin/env bash
# Takes a service out of this repository: what new-service.sh has entered, and its code.
#
# Usage: scripts/remove-service.sh NAME [--keep-code] [--delete-data] [--yes] [--dry-run]
#   --keep-code    leave its code, test, settings and topics; take it out of the compose files and
#                  of VS Code's launch.json only
#   --delete-data  delete its Docker volume and .data/NAME as well; without this its data stays
#   --yes          do not ask
#   --dry-run      show what would change, and change nothing
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' keep_code='' delete_data=false yes=false dry_run=false
while [ $# -gt 0 ]; do
  case $1 in
    --keep-code) keep_code=--keep-code ;;
    --delete-data) delete_data=true ;;
    --yes) yes=true ;;
    --dry-run) dry_run=true ;;
    -*) bad "Unknown option $1" ;;
    *) [ -z "$name" ] || bad "One name only: $name or $1"; name=$1 ;;
  esac
  shift
done
[ -n "$name" ] || bad "The name of a service is missing"
# The last one is what a removal leaves that was killed.
if [[ ! $name =~ ^[a-z][a-z0-9-]*$ ]] || {
  [ ! -e "services/$name" ] && ! grep -qs "services/$name/Dockerfile" docker-compose.yml && [ ! -e "services/.$name.removed" ]
}; then
  echo "There is no service $name: services/$name does not exist" >&2
  exit 1
fi

if $delete_data && ! $dry_run && ! docker info >/dev/null 2>&1; then
  echo "--delete-data needs Docker, which does not answer. Nothing was changed." >&2
  exit 1
fi

python=(scripts/uv run --quiet --frozen python)
if ! uv --version >/dev/null 2>&1 && python3 -c 'import yaml' 2>/dev/null; then python=(python3); fi

data="the volume ${name//-/_}_data and .data/$name"
if $dry_run; then
  "${python[@]}" scripts/wire_service.py remove "$name" ${keep_code:+"$keep_code"} --dry-run
  if $delete_data; then echo "$data would be deleted"; fi
  exit
fi

if ! $yes; then
  [ -t 0 ] || bad "There is no terminal to ask on: give --yes"
  if [ -z "$keep_code" ]; then
    echo "This deletes services/$name and its test."
    if [ -n "$(git status --porcelain -- "services/$name" "tests/test_${name//-/_}.py" 2>/dev/null)" ]; then
      echo "There are changes in them that are in no commit."
    fi
  fi
  if $delete_data; then echo "This deletes its data: $data."; fi
  read -r -p "Remove $name? [y/N] " answer
  case $answer in [yY]*) ;; *) echo "Nothing was changed"; exit 1 ;; esac
fi

volume=''
if $delete_data; then
  # A refusal comes before the container is stopped.
  "${python[@]}" scripts/wire_service.py remove "$name" ${keep_code:+"$keep_code"} --dry-run >/dev/null
  # By label, since an earlier --keep-code has taken it out of the Compose file.
  project=$(docker compose config --format json | "${python[@]}" -c 'import json, sys; print(json.load(sys.stdin)["name"])')
  containers=$(docker ps --all --quiet --filter "label=com.docker.compose.project=$project" \
    --filter "label=com.docker.compose.service=$name")
  # shellcheck disable=SC2086  # one word for each container
  [ -z "$containers" ] || { docker stop $containers && docker rm $containers; } >/dev/null
  volume=$(docker volume ls --quiet --filter "label=com.docker.compose.project=$project" \
    --filter "label=com.docker.compose.volume=${name//-/_}_data")
fi
"${python[@]}" scripts/wire_service.py remove "$name" ${keep_code:+"$keep_code"}
if $delete_data; then
  [ -z "$volume" ] || docker volume rm "$volume"
  rm -rf ".data/${name:?}"
else
  echo "If its container still runs: docker compose up --detach --remove-orphans stops it, and starts all others"
fi
