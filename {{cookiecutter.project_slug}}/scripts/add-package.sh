#!/usr/bin/env bash
# usage: scripts/add-package.sh SERVICE PACKAGE...
#
# Add a Python package to one service: on the host, in the tests and in its image.
#
# arguments:
#   SERVICE  name of the service
#   PACKAGE  as uv takes it, for example "numpy>=2" or "pymodbus[serial]"
#
# exit codes: 0 done, 1 failed, 2 wrong usage
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -ge 2 ] || bad "SERVICE and PACKAGE are needed"
service=$1
requirements=services/$service/requirements.txt
[ -f "$requirements" ] || bad "Unknown service $service. Known services: $(cd services && echo *)"
# A renamed service keeps its group. The groups of the service types belong to the template.
types=templates/service/templates
group=$service
[ ! -d "$types/$group" ] || group=$service-service
while read -r own; do
  [ -d "$types/$own" ] || group=$own
done < <(sed -n 's/^# group: //p' "$requirements")

scripts/uv add --quiet --no-sync --group "$group" "${@:2}"
if ! grep -qx "# group: $group" "$requirements"; then
  # Above the exported lines, which lock.sh replaces.
  { sed -n '/^#/!q;p' "$requirements"; echo "# group: $group"; sed '/^#/d' "$requirements"; } >"$requirements.new"
  mv "$requirements.new" "$requirements"
fi
scripts/lock.sh
echo "Build its image: docker compose up --build --detach $service"
