#!/usr/bin/env bash
# Shows every container in one table: state, health, uptime, age of the last sign of health, and
# errors in the log of the last hour. Exit code 1 when something is not running or not healthy.
#
# Usage: scripts/status.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
  '') ;;
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) echo "Unknown argument $1" >&2; exit 2 ;;
esac

# heartbeat SERVICE: how long ago the service was last known to be well, from its health check
heartbeat() {
  docker compose exec -T "$1" python healthcheck.py </dev/null 2>/dev/null |
    sed -n 's/^last sign of health \(.*\) ago$/\1/p'
}

# errors SERVICE: lines of the last hour at level error or above
errors() {
  docker compose logs --no-log-prefix --since 1h "$1" </dev/null 2>&1 |
    grep -c -E '"level": ?"(error|critical)"|\[(error|critical) *\]|(^|[0-9]: )Error' || true
}

all_well=true
rows=$(docker compose ps --all --format '{{.Service}}|{{.State}}|{{.Health}}|{{.RunningFor}}')
if [ -z "$rows" ]; then
  echo "Nothing runs: make up" >&2
  exit 1
fi
format='%-28s %-10s %-10s %-18s %-12s %s\n'
# shellcheck disable=SC2059  # one format for all lines
printf "$format" SERVICE STATE HEALTH STARTED "LAST SIGN" "ERRORS (1 h)"
while IFS='|' read -r service state health started; do
  sign='-'
  if [ "$state" = running ] && [ -d "services/$service" ]; then
    sign=$(heartbeat "$service")
    [ -n "$sign" ] && sign="$sign ago"
  fi
  # shellcheck disable=SC2059
  printf "$format" "$service" "$state" "${health:--}" "$started" "${sign:-none}" "$(errors "$service")"
  if [ "$state" != running ] || [ "${health:-healthy}" != healthy ]; then all_well=false; fi
done <<<"$rows"
$all_well
