#!/usr/bin/env bash
# usage: scripts/update.sh WORK OURS NEWEST
#
# Apply the changes of the template to a generated repository, in its root.
#
# arguments:
#   WORK    a temporary directory with a clone, `template`, removed at the end
#   OURS    the commit of the template that the repository has
#   NEWEST  the newest one
#
# Its scripts/template-update.sh clones the newest template and runs this program.
#
# exit codes: 0 up to date, 1 files to merge, or a check has failed, 2 wrong usage
#             or not known, 130 interrupted
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//p;}' "$0"; exit ;; esac
work=$1 ours=$2 newest=$3
trap 'rm -rf "$work"' EXIT

# Generated: where both sides have changed them they are generated again.
generated=(uv.lock base/requirements.txt templates/service/templates/{http-api,fleet}/requirements.txt
  docs/topics.md docs/asyncapi.json .env.example)

# Settings of git that would change what is compared or keep it from being applied.
for setting in apply.whitespace=nowarn core.autocrlf=false core.symlinks=true diff.context=3; do
  count=${GIT_CONFIG_COUNT:-0}
  export "GIT_CONFIG_KEY_$count=${setting%%=*}" "GIT_CONFIG_VALUE_$count=${setting#*=}" GIT_CONFIG_COUNT=$((count + 1))
done

rejected() { git ls-files --others -- '*.rej' ':!.venv' ':!.tools'; }

# Files that an update could not merge, one a line.
unmerged() {
  {
    git diff --name-only --diff-filter=U
    rejected
    git grep -l -E '^(<<<<<<<|>>>>>>>) ' -- ':!templates' || true
  } | sort -u
}

# Services that are still in docker-compose.yml, as in version 0.2 and older.
unmoved_services() {
  local file
  for file in $(sed -n 's/^  - \(services\/.*\.yml\)$/\1/p' docker-compose.yml) services/*/Dockerfile; do
    [ ! -d "${file%/*}" ] || [ -f "${file%/*}/compose.yml" ] || echo "${file%/*}"
  done
}

# give_up CODE MESSAGE: the next update begins where this one did
give_up() {
  trap '' INT TERM
  git checkout --quiet HEAD -- .cruft.json
  printf '%s\n' "$2" "Nothing was recorded as updated. git status shows whether a file was changed." >&2
  exit "$1"
}

# Writes what the template has changed to $work/patch, and the new record.
# cruft's own way of applying it is left out, because it reports success where git applied nothing.
compare() {
  scripts/uv run --quiet --frozen python - "$work/patch" 2>"$work/log" >/dev/null <<'END'
import importlib
import sys
from pathlib import Path
from unittest.mock import patch

# Its package has a function of the same name.
module = importlib.import_module("cruft._commands.update")

def write(diff: str, *_: object) -> None:
    Path(sys.argv[1]).write_bytes(diff.encode())

with patch.object(module, "_apply_patch", write):
    sys.exit(not module.update(skip_apply_ask=True))
END
}

apply() {
  local file
  [ -s "$work/patch" ] || return 0
  if git apply --3way "$work/patch" 2>"$work/log" || [ -n "$(git ls-files --unmerged)" ]; then return; fi
  # Nothing was applied. Take what fits, and leave the rest beside its file, as FILE.rej.
  if git apply --reject "$work/patch" 2>"$work/log"; then return; fi
  while read -r file; do
    (cd "$work" && git apply --include="$file" patch)
    cp "$work/$file" "$file.rej"
  done < <(sed -n 's/^error: \(.*\): already exists in working directory$/\1/p' "$work/log")
  [ -n "$(rejected)" ] || give_up 2 "The update cannot be applied:
$(grep '^error: ' "$work/log")"
}

# Moves the services of version 0.2 and older into services/NAME/compose.yml. 1: nothing to move
move_services() {
  local before=HEAD
  [ -n "$(unmoved_services)" ] || return 1
  # The commit before the update, where the update was committed already.
  if git diff --quiet HEAD -- .cruft.json; then before=$(git log -1 --format=%H -- .cruft.json)^; fi
  git grep --quiet '^x-service:' "$before" -- docker-compose.yml 2>/dev/null || return 1
  # The repository's version, whose files are the ones to move into.
  git -C "$work/template" checkout --quiet "$ours" || exit 1
  scripts/uv run --quiet --frozen python "$work/template/scripts/migrate_compose.py" "$before" || exit 1
  # The old program that ran first did not show the notes. This run takes nothing newer.
  newest=$ours
  ours=$(git show "$before:.cruft.json" | sed -n 's/.*"commit": "\(.*\)".*/\1/p')
}

update() {
  if move_services; then
    finish
    return
  fi
  if [ -n "$(git status --porcelain)" ]; then
    echo "There are changes that are not committed: commit or stash them first." >&2
    exit 1
  fi
  if [ "$newest" = "$ours" ]; then
    echo "The template has nothing newer."
    return
  fi
  trap 'give_up 130 "Interrupted."' INT TERM
  if ! compare; then
    grep -qE 'reference is not a tree|SHA .* could not be resolved' "$work/log" &&
      give_up 2 "The template's history does not hold the commit $ours of .cruft.json."
    # The last line of a traceback names the cause, the indented ones are what git said.
    give_up 2 "The two versions of the template cannot be compared:
$(grep -E '^[A-Za-z.]+(Error|Exception)|^ +(stderr|fatal|error):|^(fatal|error):' "$work/log" || tail -n 5 "$work/log")"
  fi
  apply
  trap - INT TERM
  finish
}

# version COMMIT: the version of the template at a commit
version() { git -C "$work/template" show "$1:cookiecutter.json" | sed -n 's/.*"__template_version": "\(.*\)".*/\1/p'; }

# The notes of the versions after the repository's, with what a migration needs.
show_notes() {
  [ "$ours" != "$newest" ] || return 0
  echo
  echo "Changes of the template from $(version "$ours") (${ours:0:8}) to $(version "$newest") (${newest:0:8}):"
  echo
  git -C "$work/template" show "$newest:CHANGELOG.md" |
    awk -v old="## [$(version "$ours")]" '
      index($0, old) == 1 { over = 1 }
      /^## / { heading = $0; shown = 1 }
      # A section without notes, such as Unreleased, has no heading either.
      over || !shown || /^## / || heading && !NF { next }
      heading { print heading "\n"; heading = "" }
      { print }'
}

# Lists what was not merged, or locks, lints and tests.
finish() {
  local files file code
  for file in "${generated[@]}"; do
    if [ -n "$(git ls-files --unmerged -- "$file")" ]; then
      git checkout --quiet --theirs -- "$file"
      git add -- "$file"
    fi
  done
  files=$(unmerged)
  if [ -n "$files" ]; then
    show_notes
    echo
    echo "Both you and the template have changed these files:"
    echo
    while read -r file; do echo "  $file"; done <<<"$files"
    echo
    echo "Resolve each file (git diff shows both sides), then run: make lock docs lint test"
    echo "and commit."
    exit 1
  fi
  # A change that the notes describe may be what fails here.
  make lock docs && make lint && make test || {
    code=$?
    show_notes
    exit "$code"
  }
  show_notes
  echo
  echo "Updated these files:"
  git --no-pager diff --stat HEAD
  echo
  echo "Review them with git diff HEAD, then commit."
}

# Read to its end before it runs: the checkout of an older version replaces this file.
update
exit
