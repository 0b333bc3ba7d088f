#!/usr/bin/env bash
# Shows every service in one table: state, health, uptime, age of the last sign of health, and
# errors in the log of the last hour. Exit code 1 when something is not running or not healthy.
#
# Usage: scripts/status.sh
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
no_arguments "$@"

# last_sign SERVICE: how long ago it was last known to be well, as its health check sees it
last_sign() {
  docker compose exec -T "$1" python healthcheck.py </dev/null 2>/dev/null |
    sed -n 's/^last sign of health \(.*\)$/\1/p' || true
}

# errors SERVICE: lines of the last hour at level error or above, and what Python or the broker died of
errors() {
  docker compose logs --no-log-prefix --since 1h "$1" </dev/null 2>&1 |
    grep -c -E '"level": ?"(error|critical)"|\[(error|critical) *\]|^[^{]*Error:' || true
}

format='%-28s %-10s %-10s %-18s %-12s %s\n'
# row SERVICE STATE HEALTH STATUS
row() {
  local service=$1 state=$2 health=$3 uptime='-' sign='-'
  if [ "$state" = running ]; then
    uptime=${4#Up }
    uptime=${uptime%% (*}
    if [ -d "services/$service" ]; then sign=$(last_sign "$service"); fi
  fi
  # shellcheck disable=SC2059  # one format for all lines
  printf "$format" "$service" "$state" "${health:--}" "$uptime" "${sign:-none}" "$(errors "$service")"
}

configured=$(docker compose config --services)
containers=$(list_containers)
rows=$(mktemp -d)
trap 'rm -rf -- "$rows"' EXIT

all_well=true
# shellcheck disable=SC2059
printf "$format" SERVICE STATE HEALTH UPTIME "LAST SIGN" "ERRORS (1 h)"
number=0
while IFS='|' read -r service state health status; do
  [ -n "$service" ] || continue
  number=$((number + 1))
  # All at the same time, since each asks Docker twice.
  row "$service" "$state" "$health" "$status" >"$rows/$service.$number" &
  if [ "$state" != running ] || [ "${health:-healthy}" != healthy ]; then all_well=false; fi
done <<<"$containers"
for service in $configured; do
  if ! grep -q "^$service|" <<<"$containers"; then
    # shellcheck disable=SC2059
    printf "$format" "$service" absent - - - - >"$rows/$service"
    all_well=false
  fi
done
wait
cat "$rows"/*
$all_well
