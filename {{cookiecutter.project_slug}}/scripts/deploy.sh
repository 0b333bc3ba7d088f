#!/usr/bin/env bash
# Build everything, start it, wait until it is healthy, and show what is not. Services restart even
# when their image is unchanged, because shared/ is mounted. The broker restarts when its
# configuration has changed.
#
# Usage: scripts/deploy.sh [--context NAME] [--timeout SECONDS]
#   --context  a Docker context of another host (docker context create NAME --docker host=ssh://...)
#   --timeout  longest wait for health once the broker has it, 300 by default
#
# The containers mount shared/ and infrastructure/, so another host needs them at the same path.
# They are copied there over the context, before anything starts.
#
# Compose reads docker-compose.yml alone, or the files in COMPOSE_FILE, here or in .env. The
# override of development is left out.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [ -z "${COMPOSE_FILE:-}" ]; then
  COMPOSE_FILE=$(scripts/uv run --quiet --frozen dotenv --file .env get COMPOSE_FILE 2>/dev/null || echo docker-compose.yml)
  export COMPOSE_FILE
fi

timeout=300
while [ $# -gt 0 ]; do
  case $1 in
    --context | --timeout)
      [ $# -ge 2 ] || bad "$1 needs a value"
      if [ "$1" = --context ]; then export DOCKER_CONTEXT=$2; else timeout=$2; fi
      shift 2 ;;
    *) bad "Unknown option $1" ;;
  esac
done
case $timeout in '' | *[!0-9]*) bad "--timeout needs a number of seconds, not '$timeout'" ;; esac
need_docker

# copy_mounted_directories: bring what the containers mount to the host of the context
copy_mounted_directories() {
  local marker
  # A context may well lead to this machine, where the copy would overwrite what it reads.
  marker=$(mktemp .deploy.XXXXXX)
  # shellcheck disable=SC2064  # the name of now
  trap "rm -f -- '$marker'" EXIT
  # Directories stay, because running containers have them mounted. Files that are gone here go there.
  # On macOS tar would add files of its own.
  COPYFILE_DISABLE=1 tar -cf - --exclude __pycache__ shared infrastructure |
    docker compose run --rm --no-TTY --user 0 --volume "$PWD:/target" --workdir /target base sh -c '
      if [ -e "$1" ]; then cat >/dev/null; echo "The context leads to this directory: nothing to copy"; exit; fi
      mkdir -p shared infrastructure && find shared infrastructure -type f -delete && tar -xf - &&
        # The containers have users of their own.
        chmod -R a+rX shared infrastructure
    ' sh "$marker"
}

# broker_has_old_configuration: whether it started with another one than it would now, if start.sh
# has kept a record of it
broker_has_old_configuration() {
  ! docker compose exec -T mqtt sh -c '
    [ ! -e /run/mosquitto/config.cksum ] ||
      find /mosquitto/config -type f -exec cksum {} + | sort | cmp -s - /run/mosquitto/config.cksum
  ' </dev/null 2>/dev/null
}

scripts/build-base.sh --quiet
docker compose build --quiet
if [ -n "${DOCKER_CONTEXT:-}" ]; then
  echo "Copying shared/ and infrastructure/ to $PWD in the context $DOCKER_CONTEXT"
  copy_mounted_directories
fi

# Stopped services start again below. The broker keeps running unless its configuration changed.
stale=()
while read -r service; do
  if [ -d "services/$service" ] || { [ "$service" = mqtt ] && broker_has_old_configuration; }; then
    stale+=("$service")
  fi
done < <(docker compose config --services)
if [ ${#stale[@]} -gt 0 ]; then docker compose stop "${stale[@]}"; fi
if docker compose up --detach --wait --wait-timeout "$timeout" --remove-orphans; then
  exec scripts/uv run --quiet --frozen python scripts/status.py --logs
fi
scripts/uv run --quiet --frozen python scripts/status.py --logs || true
echo "Not everything is healthy." >&2
exit 1
