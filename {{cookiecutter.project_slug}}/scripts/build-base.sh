#!/usr/bin/env bash
# Build the base image of all services.
#
# Usage: scripts/build-base.sh [OPTION OF docker compose build ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BASE_REQUIREMENTS=$(git hash-object base/requirements.txt)
export BASE_REQUIREMENTS
exec docker compose build "$@" base
