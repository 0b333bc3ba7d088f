#!/usr/bin/env bash
# Brings uv.lock in step with pyproject.toml, and the exported requirements in step with uv.lock.
#
# Usage: scripts/lock.sh [--check | --upgrade]
#   --check    change nothing; exit 1 and name what is out of step
#   --upgrade  take the newest versions that pyproject.toml allows
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

check=false
lock=(lock --quiet)
case ${1:-} in
  '') ;;
  --check) check=true lock=(lock --check --offline --quiet) ;;
  --upgrade) lock+=(--upgrade) ;;
  *) bad "Unknown option $1" ;;
esac
no_arguments "${@:2}"

scripts/uv "${lock[@]}" || { echo "uv.lock does not fit pyproject.toml: run scripts/lock.sh" >&2; exit 1; }

new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
stale=0

# export_to FILE UV-ARGUMENTS...: FILE keeps its own comment lines at the top
export_to() {
  local file=$1; shift
  sed -n '/^#/!q;p' "$file" >"$new/requirements.txt"
  scripts/uv export --quiet --frozen --no-emit-project --no-header --no-annotate "$@" >>"$new/requirements.txt"
  if cmp -s "$new/requirements.txt" "$file"; then return; fi
  if $check; then
    echo "$file does not fit uv.lock: run scripts/lock.sh" >&2
    stale=1
  else
    cat "$new/requirements.txt" >"$file"
    echo "$file updated"
  fi
}

export_to base/requirements.txt --no-default-groups --group debug
export_to templates/service/templates/http-api/requirements.txt --only-group http-api
for file in services/*/requirements.txt; do
  groups=()
  while read -r group; do groups+=(--only-group "$group"); done < <(sed -n 's/^# group: //p' "$file")
  if [ ${#groups[@]} -gt 0 ]; then export_to "$file" "${groups[@]}"; fi
done
exit "$stale"
