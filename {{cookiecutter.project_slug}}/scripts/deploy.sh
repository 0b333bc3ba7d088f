#!/usr/bin/env bash
# usage: scripts/deploy.sh [--swarm] [--pull] [--registry NAME] [--context NAME]
#                          [--timeout SECONDS]
#
# Build everything, start it, wait until it is healthy, and show what is not.
#
# options:
#   --swarm            update the services of a swarm one task after the other
#                      (docs/swarm.md)
#   --pull             build nothing, and take the images of this commit from the
#                      registry
#   --registry NAME    push the images to this registry, such as
#                      ghcr.io/owner/repository, instead of IMAGE_REGISTRY
#   --context NAME     a Docker context of another host
#                      (docker context create NAME --docker host=ssh://...)
#   --timeout SECONDS  until the services are healthy, after the broker is:
#                      300 by default, 900 in a swarm
#
# Services restart even when their image is unchanged, because shared/ is mounted.
# The broker restarts when its configuration has changed. Images have the commit
# as their tag.
#
# The containers mount shared/ and infrastructure/, and fleet mounts docs/, so
# another host needs them at the same path. They are copied there over the
# context, before anything starts. Other files in these directories on that host
# are deleted.
#
# Compose reads docker-compose.yml alone, or the files in COMPOSE_FILE, here or in
# .env. The override of development is left out.
#
# exit codes: 0 everything is healthy, 1 failed or not healthy, 2 wrong usage
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
if [ -z "${COMPOSE_FILE:-}" ]; then
  COMPOSE_FILE=$(PYTHONPATH=scripts scripts/uv run --quiet --frozen python -c '
from common import ROOT, read_dotenv
print(read_dotenv(ROOT / ".env", warn=False).get("COMPOSE_FILE") or "docker-compose.yml")')
  export COMPOSE_FILE
fi

timeout='' pull=false push=false swarm=false resolve=always
while [ $# -gt 0 ]; do
  case $1 in
    --pull) pull=true; shift ;;
    --swarm) swarm=true push=true; shift ;;
    --context | --registry | --timeout)
      [ $# -ge 2 ] || bad "$1 needs a value"
      case $1 in
        --context) export DOCKER_CONTEXT=$2 ;;
        --registry) export IMAGE_REGISTRY=$2; push=true ;;
        --timeout) timeout=$2 ;;
      esac
      shift 2 ;;
    *) bad "Unknown option $1" ;;
  esac
done
if $swarm; then timeout=${timeout:-900}; else timeout=${timeout:-300}; fi
case $timeout in '' | *[!0-9]*) bad "--timeout needs a number of seconds, not '$timeout'" ;; esac
need_docker
# A working tree that differs from its commit gets a tag of its own.
IMAGE_TAG=${IMAGE_TAG:-$(git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || echo latest)}
export IMAGE_TAG

# copy_mounted_directories: bring what the containers mount to the host of the context
copy_mounted_directories() {
  local marker archive
  # A context may well lead to this machine, where the copy would overwrite what it reads.
  marker=$(mktemp .deploy.XXXXXX)
  archive=$(mktemp)
  # shellcheck disable=SC2064  # the names of now
  trap "rm -f -- '$marker' '$archive'" EXIT
  # Directories stay, because running containers have them mounted. Files that are gone here go there.
  # On macOS tar would add files of its own.
  # A file that cannot be read ends this before anything is copied.
  COPYFILE_DISABLE=1 tar -czf "$archive" --exclude __pycache__ shared infrastructure docs
  docker compose run --rm --no-TTY --user 0 --volume "$PWD:/target" --workdir /target base sh -c '
    if [ -e "$1" ]; then cat >/dev/null; echo "The context leads to this directory: nothing to copy"; exit; fi
    # Read the whole archive first, because an interrupted copy must not delete anything.
    cat >/tmp/new.tgz && tar -tzf /tmp/new.tgz >/dev/null && mkdir -p shared infrastructure docs &&
      find shared infrastructure docs -type f -delete && tar -xzf /tmp/new.tgz &&
      # The containers have users of their own.
      chmod -R a+rX shared infrastructure docs
  ' sh "$marker" <"$archive"
}

# broker_has_old_configuration: whether it started with another one than it would now, if start.sh
# has kept a record of it
broker_has_old_configuration() {
  ! docker compose exec -T mqtt sh -c '
    [ ! -e /run/mosquitto/config.cksum ] ||
      find /mosquitto/config -type f -exec cksum {} + | sort | cmp -s - /run/mosquitto/config.cksum
  ' </dev/null 2>/dev/null
}

# prepare_swarm: check the swarm and translate the model, before anything is built
prepare_swarm() {
  local nodes
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  nodes=$(docker node ls --quiet | wc -l)
  if [ "$(docker node ls --quiet --filter node.label=state=true | wc -l)" -ne 1 ]; then
    echo "Choose the node that keeps the volumes: docker node update --label-add state=true NODE" >&2
    exit 1
  fi
  name=$(docker compose config | sed -n 's/^name: //p')
  docker compose config --format json | scripts/uv run --quiet --frozen python scripts/stack.py "$work" >"$work/stack.json"
  if grep -q '"image": "localhost/' "$work/stack.json"; then
    push=false resolve=never
    if [ "$nodes" -gt 1 ]; then
      echo "Other nodes need a registry to get the images from. docs/swarm.md shows how to start one." >&2
      exit 1
    fi
  fi
}

# deploy_stack: update the stack, wait, and remove configs and secrets that nothing uses any more
deploy_stack() {
  local code=0 kind id
  docker stack deploy --detach=true --with-registry-auth --resolve-image "$resolve" --prune \
    --compose-file "$work/stack.json" "$name"
  echo "Waiting up to $timeout s until every task runs the new version"
  scripts/uv run --quiet --frozen python scripts/status.py --logs --wait "$timeout" || code=1
  for kind in config secret; do
    # Docker keeps those that are in use.
    for id in $(docker "$kind" ls --quiet --filter "label=com.docker.stack.namespace=$name"); do
      docker "$kind" rm "$id" >/dev/null 2>&1 || true
    done
  done
  exit "$code"
}

if $swarm; then prepare_swarm; fi
ours=(base)
while read -r service; do
  if [ -d "services/$service" ]; then ours+=("$service"); fi
done < <(docker compose config --services)
if $pull; then
  echo "Pulling the images with the tag $IMAGE_TAG"
  docker compose pull --quiet "${ours[@]}" || {
    echo "The registry (IMAGE_REGISTRY) does not have all images with the tag $IMAGE_TAG. Nothing was changed." >&2
    echo "Check out a commit whose images were pushed, or run make deploy without --pull." >&2
    exit 1
  }
else
  echo "Building the images with the tag $IMAGE_TAG"
  scripts/build-base.sh --quiet
  docker compose build --quiet
  if $push; then
    echo "Pushing the images"
    docker compose push --quiet "${ours[@]}"
  fi
fi
# Other commands of Compose use this tag. They must not start an older image.
for image in $(docker compose config --images "${ours[@]}"); do
  case $image in *":$IMAGE_TAG") docker tag "$image" "${image%:*}:latest" ;; esac
done
if $swarm; then deploy_stack; fi
if [ -n "${DOCKER_CONTEXT:-}" ]; then
  echo "Copying shared/, infrastructure/ and docs/ to $PWD in the context $DOCKER_CONTEXT"
  copy_mounted_directories
fi

# Stopped services start again below. The broker keeps running unless its configuration changed.
stale=("${ours[@]:1}")
if docker compose config --services | grep -x mqtt >/dev/null && broker_has_old_configuration; then stale+=(mqtt); fi
if [ ${#stale[@]} -gt 0 ]; then docker compose stop "${stale[@]}"; fi
if docker compose up --no-build --detach --wait --wait-timeout "$timeout" --remove-orphans; then
  scripts/uv run --quiet --frozen python scripts/status.py --logs
  echo "Deployed $IMAGE_TAG. To go back, check out another commit and run make deploy again."
  exit
fi
scripts/uv run --quiet --frozen python scripts/status.py --logs || true
echo "Not everything is healthy." >&2
exit 1
