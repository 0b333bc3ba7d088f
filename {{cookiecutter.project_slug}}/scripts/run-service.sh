#!/usr/bin/env bash
# Runs one service on this machine, without Docker; starts a broker when none listens.
# Usage: scripts/run-service.sh NAME
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

name=${1:-}
if [ -z "$name" ] || [ ! -f "services/$name/main.py" ]; then
  echo "Usage: scripts/run-service.sh NAME, where NAME is one of:" >&2
  for main in services/*/main.py; do echo "  $(basename "$(dirname "$main")")" >&2; done
  exit 2
fi

export MQTT_HOST=${MQTT_HOST:-127.0.0.1} MQTT_PORT=${MQTT_PORT:-1883}
export DATA_DIR=${DATA_DIR:-$root/.data/$name} PYTHONPATH=$root
mkdir -p "$DATA_DIR"

listens() { (exec 3<>"/dev/tcp/$MQTT_HOST/$MQTT_PORT") 2>/dev/null; }

start_broker() {
  local log=.data/broker.log program
  # A process group of its own: Ctrl-C stops the service alone, and its farewell still arrives.
  set -m
  if program=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v mosquitto); then
    printf 'listener %s 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n' "$MQTT_PORT" >.data/broker.conf
    "$program" -c .data/broker.conf >"$log" 2>&1 &
  else
    program="the embedded broker"
    scripts/uv run --frozen python -m tests.brokers "$MQTT_PORT" >"$log" 2>&1 &
  fi
  broker=$!
  set +m
  until listens; do
    kill -0 "$broker" 2>/dev/null || { tail -n 5 "$log" >&2; echo "$program did not start" >&2; exit 1; }
    sleep 0.1
  done
  echo "Started $program on port $MQTT_PORT for as long as $name runs (log: $log)" >&2
}

broker='' service=''
# shellcheck disable=SC2317,SC2329  # called by the traps
stop() { for pid in $service $broker; do kill "$pid" 2>/dev/null && wait "$pid" || true; done; }
trap stop EXIT
trap 'exit 143' TERM

case $MQTT_HOST in
  127.0.0.1 | localhost) listens || start_broker ;;
esac

# In the background, so that a signal reaches this shell while the service runs.
scripts/uv run --frozen python "services/$name/main.py" &
service=$!
trap 'true' INT # the terminal sends it to the service as well, which then stops in order
code=0
wait "$service" || code=$?
# A signal ends the first `wait` early.
while kill -0 "$service" 2>/dev/null; do code=0; wait "$service" || code=$?; done
service=''
exit "$code"
