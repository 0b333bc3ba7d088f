#!/usr/bin/env bash
# Takes the newest version of the template that this repository came from.
#
# Usage: scripts/template-update.sh [--check]
#   --check  only tell whether there is a newer one: exit code 1 when there is, 2 when that is not known
#
# Your services, infrastructure and secrets are left alone. Nothing is committed.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cruft() { scripts/uv run --quiet --frozen cruft "$@"; }

# Made, not written: where both sides have changed them they are made anew.
made=(uv.lock base/requirements.txt templates/service/templates/http-api/requirements.txt
  docs/topics.md docs/asyncapi.json .env.example)

# Files that an update could not merge, one a line.
unmerged() {
  {
    git diff --name-only --diff-filter=U
    git ls-files --others --exclude-standard -- '*.rej' '*.orig'
    git grep -l -E '^(<<<<<<<|>>>>>>>) ' -- ':!templates' || true
  } | sort -u
}

check() {
  if [ "$newest" = "$ours" ]; then
    echo "The template has nothing newer."
  else
    echo "A newer template is available: run make template-update." >&2
    exit 1
  fi
}

update() {
  if [ -n "$(git status --porcelain)" ]; then
    echo "There are changes that are not committed: commit or stash them first." >&2
    exit 1
  fi
  if [ "$newest" = "$ours" ]; then
    echo "The template has nothing newer."
    return
  fi
  local files file log
  log=$(mktemp)
  # What the template says of new repositories does not apply, nor praise where there are conflicts.
  cruft update --skip-apply-ask 2>"$log" | sed -e '/^Rendered for cruft/d' -e '/^Good work!/d' || {
    # Without the frames of its traceback.
    sed -e '/^╭/,/^╰/d' -e '/^ *$/d' "$log" >&2
    echo "cruft could not update. Does the template's history hold the commit $ours of .cruft.json?" >&2
    rm -f "$log"
    exit 2
  }
  cat "$log" >&2
  rm -f "$log"
  for file in "${made[@]}"; do
    if [ -n "$(git ls-files --unmerged -- "$file")" ]; then
      git checkout --quiet --theirs -- "$file"
      git add -- "$file"
    fi
  done
  files=$(unmerged)
  if [ -n "$files" ]; then
    echo
    echo "Both you and the template have changed these files:"
    echo
    while read -r file; do echo "  $file"; done <<<"$files"
    echo
    echo "Settle each one (git diff shows both sides), then run: make lock docs lint test"
    echo "and commit."
    exit 1
  fi
  make lock docs
  make lint
  make test
  echo
  echo "Updated. What has changed:"
  git --no-pager diff --stat HEAD
  echo
  echo "Look at it (git diff HEAD), then commit it."
}

main() {
  case ${1:-} in
    '' | --check) ;;
    *) bad "Unknown option $1" ;;
  esac
  no_arguments "${@:2}"
  if [ ! -f .cruft.json ]; then
    echo "This repository does not know its template: there is no .cruft.json." >&2
    echo "It gets one with: scripts/uv run --frozen cruft link URL" >&2
    exit 2
  fi
  local record template ours newest
  record=$(python3 -c 'import json; state = json.load(open(".cruft.json")); print(state["template"], state["commit"], sep="\n")' 2>/dev/null) || {
    echo ".cruft.json cannot be read: git log -- .cruft.json shows when it could" >&2
    exit 2
  }
  template=${record%$'\n'*} ours=${record##*$'\n'}
  newest=$(git ls-remote --exit-code "$template" HEAD) || {
    echo "The template cannot be reached: $template" >&2
    exit 2
  }
  newest=${newest%%[[:space:]]*}
  if [ "${1:-}" = --check ]; then check; else update; fi
}

# Read to its end before it runs, since an update may replace this file.
main "$@"
exit
