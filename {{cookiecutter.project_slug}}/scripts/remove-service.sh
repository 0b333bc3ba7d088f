#!/usr/bin/env bash
# Takes a service out of this repository: what new-service.sh has entered, and its code.
#
# Usage: scripts/remove-service.sh NAME [--keep-code] [--delete-data] [--yes] [--dry-run]
#   --keep-code    leave services/NAME where it is
#   --delete-data  delete its Docker volume as well; without this its data stays
#   --yes          do not ask before deleting
#   --dry-run      name the files that would change, and change nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }
bad() { printf '%s\n\n' "$1" >&2; usage >&2; exit 2; }

name='' keep_code=false delete_data=false yes=false dry_run=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --keep-code) keep_code=true ;;
    --delete-data) delete_data=true ;;
    --yes) yes=true ;;
    --dry-run) dry_run=(--dry-run) ;;
    -*) bad "Unknown option $1" ;;
    *) [ -z "$name" ] || bad "One name only: $name or $1"; name=$1 ;;
  esac
  shift
done
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || bad "The name of a service is missing"
if [ ! -d "services/$name" ] && ! grep -q "^ *$name:" docker-compose.yml; then
  echo "There is no service $name" >&2
  exit 1
fi

python=(scripts/uv run --quiet --frozen python)
if ! uv --version >/dev/null 2>&1 && python3 -c 'import yaml' 2>/dev/null; then python=(python3); fi

if [ ${#dry_run[@]} -gt 0 ]; then
  "${python[@]}" scripts/wire_service.py remove "$name" --dry-run
  $keep_code || echo "  services/$name removed"
  exit 0
fi
if ! $yes; then
  what="wiring of $name"
  $keep_code || what="code and $what"
  ! $delete_data || what="data, $what"
  read -r -p "Delete the $what? [y/N] " answer
  case $answer in [yY]*) ;; *) echo "Nothing was changed"; exit 1 ;; esac
fi

if $delete_data; then
  docker compose rm --stop --force "$name"
  volume=$(docker compose config --format json | python3 -c 'import json, sys; print(json.load(sys.stdin)["volumes"][sys.argv[1]]["name"])' "${name//-/_}_data")
fi
"${python[@]}" scripts/wire_service.py remove "$name"
if ! $keep_code; then
  rm -rf "services/${name:?}"
  echo "  services/$name removed"
fi
if $delete_data; then docker volume rm --force "$volume"; fi
