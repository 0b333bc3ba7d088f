#!/usr/bin/env bash
# Builds the base image of all services.
#
# Usage: scripts/build-base.sh [ARGUMENT OF docker build ...]
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# As Compose understands it, which reads .env too.
image=$(docker compose config --format json |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["x-build"]["args"]["BASE_IMAGE"])')
# The label tells doctor.py whether the image fits the requirements.
requirements=$(python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' base/requirements.txt)
docker build --tag "$image" --label "base.requirements=$requirements" "$@" base
echo "Built $image"
