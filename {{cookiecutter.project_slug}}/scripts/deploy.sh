#!/usr/bin/env bash
# Builds everything, starts it, waits until it is healthy, and shows what is not.
#
# Usage: scripts/deploy.sh [--context NAME] [--timeout SECONDS]
#   --context  a Docker context of another host (docker context create NAME --docker host=ssh://...)
#   --timeout  longest wait for health, 300 by default
#
# The containers mount shared/ and infrastructure/ from this folder, so another host needs them at
# the same path: they are copied there, over the context itself, before anything starts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }
bad() { printf '%s\n\n' "$1" >&2; usage >&2; exit 2; }

timeout=300
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --context | --timeout)
      [ $# -ge 2 ] || bad "$1 needs a value"
      if [ "$1" = --context ]; then export DOCKER_CONTEXT=$2; else timeout=$2; fi
      shift 2 ;;
    *) bad "Unknown option $1" ;;
  esac
done
docker version >/dev/null || { echo "Docker does not answer${DOCKER_CONTEXT:+ in the context $DOCKER_CONTEXT}" >&2; exit 1; }

scripts/build-base.sh --quiet
docker compose build --quiet

if [ -n "${DOCKER_CONTEXT:-}" ]; then
  echo "Copying shared/ and infrastructure/ to $DOCKER_CONTEXT:$PWD"
  image=$(docker compose config --images | grep -m 1 mosquitto)
  # Old files go, or a module that was removed here would live on there.
  tar -cf - --exclude __pycache__ shared infrastructure |
    docker run --rm --interactive --user 0 --entrypoint sh --volume "$PWD:/target" "$image" \
      -c 'cd /target && rm -rf shared infrastructure && tar -xf -'
fi

code=0
docker compose up --detach --wait --wait-timeout "$timeout" --remove-orphans || code=$?
scripts/status.sh || code=1
if [ "$code" != 0 ]; then
  docker compose ps --all --format '{{.Service}} {{.State}} {{.Health}}' |
    while read -r service state health; do
      if [ "$state" != running ] || [ "${health:-healthy}" != healthy ]; then
        printf '\n=== last lines of %s\n' "$service"
        docker compose logs --no-log-prefix --tail 30 "$service" </dev/null
      fi
    done
  echo "Not everything is healthy." >&2
fi
exit "$code"
