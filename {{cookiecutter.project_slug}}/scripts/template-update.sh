#!/usr/bin/env bash
# Takes the newest version of the template that this repository came from.
#
# Usage: scripts/template-update.sh [--check]
#   --check  only tell whether there is a newer one: exit code 1 when there is
#
# Your services, infrastructure and secrets are left alone. Nothing is committed.
set -euo pipefail

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

# Exit code 0 when the template has nothing newer.
is_current() { scripts/uv run --quiet --frozen cruft check; }

# Files that an update could not merge, one a line.
unmerged() {
  {
    git diff --name-only --diff-filter=U
    git ls-files --others --exclude-standard -- '*.rej' '*.orig'
    git grep -l -E '^(<<<<<<<|>>>>>>>) ' -- ':!templates' || true
  } | sort -u
}

check() {
  if is_current; then
    echo "The template has nothing newer."
  else
    echo "A newer template is there: run make template-update." >&2
    exit 1
  fi
}

update() {
  if [ -n "$(git status --porcelain)" ]; then
    echo "There are changes that are not committed: commit or stash them first." >&2
    exit 1
  fi
  if is_current; then
    echo "The template has nothing newer."
    return
  fi
  scripts/uv run --quiet --frozen cruft update --skip-apply-ask
  local files
  files=$(unmerged)
  if [ -n "$files" ]; then
    echo
    echo "Both you and the template have changed these files. Settle each one, then run"
    echo "make lock lint test and commit:"
    printf '  %s\n' "$files"
    exit 1
  fi
  scripts/lock.sh
  make lint
  make test
  echo
  echo "Updated. What has changed:"
  git --no-pager diff --stat HEAD
  echo
  echo "Look at it (git diff HEAD), then commit it."
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  case ${1:-} in
    -h | --help) usage; return ;;
    '' | --check) ;;
    *) usage >&2; exit 2 ;;
  esac
  if [ ! -f .cruft.json ]; then
    echo "This repository does not know its template: there is no .cruft.json." >&2
    echo "It gets one with: scripts/uv run --frozen cruft link URL" >&2
    exit 1
  fi
  if [ "${1:-}" = --check ]; then check; else update; fi
}

# Read to its end before it runs, since an update may replace this file.
main "$@"
exit
