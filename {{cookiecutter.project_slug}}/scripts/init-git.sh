#!/usr/bin/env bash
# Makes this folder a git repository with one first commit. Safe to run again.
# Exit code 3: skipped, for the reason given.
#
# Usage: scripts/init-git.sh
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
no_arguments "$@"

skip() { echo "$*" >&2; exit 3; }

command -v git >/dev/null || skip "git is missing"
if [ ! -e .git ]; then
  if outer=$(git rev-parse --show-toplevel 2>/dev/null); then
    skip "this folder is inside the git repository $outer, which keeps it"
  fi
  git init --quiet --initial-branch=main
fi
if git rev-parse --quiet --verify HEAD >/dev/null; then
  echo "already a repository, on branch $(git branch --show-current)"
  exit 0
fi
git add --all
if ! git var GIT_AUTHOR_IDENT >/dev/null 2>&1 || ! git var GIT_COMMITTER_IDENT >/dev/null 2>&1; then
  skip 'initialised and staged, not committed: git has no identity (git config --global user.name "Your Name"; git config --global user.email you@example.com)'
fi
# Hooks and signing would ask for tools and passwords that a first commit need not have.
git commit --quiet --no-verify --no-gpg-sign --message "Start the repository from its template"
echo "branch main, first commit $(git rev-parse --short HEAD)"
