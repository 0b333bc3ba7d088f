#!/usr/bin/env bash
# usage: scripts/build-base.sh [OPTION...]
#
# Build the base image of all services.
#
# arguments:
#   OPTION  option of docker compose build
#
# exit codes: those of docker compose build
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

docker compose build "$@" base
