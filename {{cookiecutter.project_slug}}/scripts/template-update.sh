#!/usr/bin/env bash
# usage: scripts/template-update.sh [--check]
#
# Take the newest version of the template that this repository came from.
#
# options:
#   --check  only look for a newer version
#
# The program that applies it comes with the newest template. Your services,
# infrastructure and secrets are left alone. Nothing is committed.
#
# exit codes: 0 up to date, 1 --check has found a newer version, or an update
#             needs you, 2 wrong usage or not known
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
  '' | --check) ;;
  *) bad "Unknown option $1" ;;
esac
no_arguments "${@:2}"
if [ ! -f .cruft.json ]; then
  echo "This repository does not know its template: there is no .cruft.json." >&2
  echo "Run: scripts/uv run --frozen cruft link URL" >&2
  exit 2
fi
record=$(scripts/uv run --quiet --no-project python -c '
import json
state = json.load(open(".cruft.json"))
version = state["context"]["cookiecutter"].get("__template_version", "unknown")
print(state["template"], state["commit"], version, sep="\n")' 2>/dev/null) || {
  echo ".cruft.json cannot be read. Run: git log --patch -- .cruft.json" >&2
  exit 2
}
{ read -r template; read -r ours; read -r version; } <<<"$record"
found=$(git ls-remote --exit-code --sort=v:refname "$template" HEAD 'v*') || {
  echo "The template cannot be reached: $template. Run: git ls-remote $template" >&2
  exit 2
}
newest=${found%%[[:space:]]*}

if [ "${1:-}" != --check ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  echo "Fetching the template from $template"
  git clone --quiet "$template" "$work/template" || exit 2
  exec bash "$work/template/scripts/update.sh" "$work" "$ours" "$newest"
elif [ "$newest" = "$ours" ]; then
  echo "The template has nothing newer."
else
  release=$(sed -n 's|.*refs/tags/v\([0-9.]*\)$|\1|p' <<<"$found" | tail -n 1)
  echo "A newer template is available (yours: $version, newest release: ${release:-none}). Run: make template-update" >&2
  exit 1
fi
