#!/usr/bin/env bash
# Build the base image of all services.
#
# Usage: scripts/build-base.sh [OPTION OF docker compose build ...]
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

docker compose build "$@" base
