#!/usr/bin/env bash
# Add a Python package to one service: on the host, in the tests and in its image.
#
# Usage: scripts/add-package.sh SERVICE PACKAGE...
#   PACKAGE  as uv takes it, for example "numpy>=2" or "pymodbus[serial]"
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -ge 2 ] || bad "SERVICE and PACKAGE are needed"
service=$1
requirements=services/$service/requirements.txt
[ -f "$requirements" ] || bad "There is no service $service"

# A group of its own. A group that the service shared until now becomes part of it.
before=$(sed -n 's/^# group: //p' "$requirements")
scripts/uv add --quiet --group "$service" "${@:2}"
if [ "$before" != "$service" ]; then
  sed -i.old "/^\"\{0,1\}$service\"\{0,1\} = \[/a\\
${before:+    { include-group = \"$before\" \},}" pyproject.toml
  printf '# Exported from uv.lock by scripts/lock.sh. Add packages with scripts/add-package.sh.\n# group: %s\n' "$service" >"$requirements"
fi
scripts/lock.sh
echo "Build its image: docker compose up --build --detach $service"
