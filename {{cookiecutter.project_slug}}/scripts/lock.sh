#!/usr/bin/env bash
# usage: scripts/lock.sh [--check | --upgrade]
#
# Lock pyproject.toml in uv.lock, and export that to the requirements of images.
#
# options:
#   --check    change nothing, and name what is not up to date
#   --upgrade  take the newest versions that pyproject.toml allows
#
# exit codes: 0 up to date, 1 failed or not up to date, 2 wrong usage,
#             3 not known, for the reason given
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

check=false
lock=(lock --quiet)
case ${1:-} in
  '') ;;
  --check) check=true lock=(lock --check --offline --quiet) ;;
  --upgrade) lock+=(--upgrade); echo "Looking for newer versions" >&2 ;;
  *) bad "Unknown option $1" ;;
esac
no_arguments "${@:2}"

# The update from version 0.2 or older ends with a second run.
for file in services/*/Dockerfile; do
  [ -f "${file%/*}/compose.yml" ] && continue
  echo "${file%/*}/compose.yml is missing. Run make template-update again: it moves the service there." >&2
  exit 1
done

new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
stale=0

# uv.lock must be the same for everyone, whatever the uv.toml of this user says.
code=0
reason=$(XDG_CONFIG_HOME=$new XDG_CONFIG_DIRS=$new scripts/uv "${lock[@]}" 2>&1) || code=$?
if $check && [ "$code" = 1 ]; then
  echo "uv.lock is not up to date with pyproject.toml: run make lock" >&2
  exit 1
elif [ "$code" != 0 ]; then
  printf '%s\n' "$reason" >&2
  if $check; then exit 3; else exit 1; fi
fi

# export_to FILE UV-ARGUMENTS...: FILE keeps its own comment lines at the top
export_to() {
  local file=$1; shift
  sed -n '/^#/!q;p' "$file" >"$new/requirements.txt"
  scripts/uv export --quiet --frozen --no-emit-project --no-header --no-annotate "$@" >>"$new/requirements.txt"
  if cmp -s "$new/requirements.txt" "$file"; then return; fi
  if $check; then
    echo "$file is not up to date with uv.lock: run make lock" >&2
    stale=1
  else
    cat "$new/requirements.txt" >"$file"
    echo "$file updated"
  fi
}

export_to base/requirements.txt --no-default-groups --group debug
for group in http-api fleet; do
  export_to "templates/service/templates/$group/requirements.txt" --only-group "$group"
done
for file in services/*/requirements.txt; do
  groups=()
  while read -r group; do groups+=(--only-group "$group"); done < <(sed -n 's/^# group: //p' "$file")
  if [ ${#groups[@]} -gt 0 ]; then export_to "$file" "${groups[@]}"; fi
done
exit "$stale"
