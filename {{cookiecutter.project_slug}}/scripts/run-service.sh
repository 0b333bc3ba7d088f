#!/usr/bin/env bash
# Runs one service on this machine, without Docker; starts a broker when none listens.
#
# Usage: scripts/run-service.sh NAME
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
root=$PWD

name=${1:-}
if [[ ! $name =~ ^[a-z][a-z0-9-]*$ ]] || [ ! -f "services/$name/main.py" ]; then
  echo "Usage: scripts/run-service.sh NAME, where NAME is one of:" >&2
  for main in services/*/main.py; do echo "  $(basename "$(dirname "$main")")" >&2; done
  exit 2
fi
no_arguments "${@:2}"

# in_env NAME: its value in .env
in_env() { sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1 | tr -d "'\"" || true; }

# `mqtt` is the broker's name among the containers.
host=$(in_env MQTT_HOST) port=$(in_env MQTT_PORT)
if [ "${host:-mqtt}" = mqtt ]; then host=127.0.0.1; fi
export MQTT_HOST=${MQTT_HOST:-$host} MQTT_PORT=${MQTT_PORT:-${port:-1883}}
export DATA_DIR=${DATA_DIR:-$root/.data/$name} PYTHONPATH=$root
mkdir -p "$DATA_DIR"

listens() { (exec 3<>"/dev/tcp/$MQTT_HOST/$MQTT_PORT") 2>/dev/null; }

# Background jobs get process groups of their own: Ctrl-C reaches this shell alone, which stops
# the service first, so that its farewell still finds the broker.
set -m
broker='' service=''

# shellcheck disable=SC2317,SC2329  # called by the trap
stop_broker() { if [ -n "$broker" ] && kill "$broker" 2>/dev/null; then wait "$broker" || true; fi; }
trap stop_broker EXIT

start_broker() {
  local log=.data/broker.log program
  if program=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v mosquitto); then
    printf 'listener %s 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n' "$MQTT_PORT" >.data/broker.conf
    "$program" -c .data/broker.conf >"$log" 2>&1 &
  else
    program="the embedded broker"
    scripts/uv run --frozen python -m tests.brokers "$MQTT_PORT" >"$log" 2>&1 &
  fi
  broker=$!
  until listens; do
    kill -0 "$broker" 2>/dev/null || { tail -n 5 "$log" >&2; echo "$program did not start" >&2; exit 1; }
    sleep 0.1
  done
  export MQTT_TLS=false
  echo "Started $program on port $MQTT_PORT, log in $log" >&2
}

case $MQTT_HOST in
  127.0.0.1 | localhost) listens || start_broker ;;
esac

scripts/uv run --frozen python "services/$name/main.py" &
service=$!
trap 'kill -TERM "$service" 2>/dev/null || true' INT TERM
code=0
wait "$service" || code=$?
# A trapped signal ends `wait` before the service has ended.
while kill -0 "$service" 2>/dev/null; do
  code=0
  wait "$service" || code=$?
done
exit "$code"
