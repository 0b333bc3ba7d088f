# shellcheck shell=bash
# Beginning of the longer scripts in Bash. Sourcing this file changes to the repository's root,
# prints the script's first comment on --help, and defines the functions below.
set -euo pipefail

# Exported by the user, these would lead to another directory or another repository.
unset CDPATH GIT_DIR GIT_WORK_TREE GIT_COMMON_DIR GIT_OBJECT_DIRECTORY GIT_NAMESPACE
script=$(basename "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# A repository may be without services.
shopt -s nullglob

usage() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "scripts/$script"
}
bad() { printf '%s\n\n' "$1" >&2; usage | sed -n '1,/^$/p' >&2; exit 2; }
# need_docker [COMMAND]: end with one line that names the cause when Docker or Compose does not
# respond, and the command to run without them
need_docker() {
  local reason page=engine/install/
  if ! command -v docker >/dev/null; then
    reason="Docker is not installed."
  elif ! reason=$(docker version 2>&1 >/dev/null); then
    case $reason in
      *"permission denied"*) page=engine/install/linux-postinstall/ ;;
      *) page=engine/daemon/troubleshoot/ ;;
    esac
    reason="Docker does not respond: $(tail -n 1 <<<"$reason")"
  elif ! docker compose version >/dev/null 2>&1; then
    reason="Docker Compose is not installed." page=compose/install/
  else
    return 0
  fi
  echo "$reason See https://docs.docker.com/$page. Without Docker: ${1:-make run SERVICE=name}" >&2
  exit 1
}
no_arguments() { [ $# = 0 ] || bad "Unknown argument $1"; }

case ${1:-} in -h | --help) usage; exit 0 ;; esac
