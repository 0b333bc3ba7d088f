#!/bin/sh
# With the first start, and never again, the volume gets what later starts go by.
set -eu
bolt=/var/lib/influxdb2/influxd.bolt
if [ ! -e "$bolt" ]; then
  token=''
  if [ "${DOCKER_INFLUXDB_INIT_MODE:-}" = setup ]; then
    : "${DOCKER_INFLUXDB_INIT_USERNAME:?}" "${DOCKER_INFLUXDB_INIT_PASSWORD:?}" "${DOCKER_INFLUXDB_INIT_ORG:?}"
    : "${DOCKER_INFLUXDB_INIT_BUCKET:?}"
    token=$DOCKER_INFLUXDB_INIT_ADMIN_TOKEN
  fi
  printf '%s' "$token" >"$bolt"
fi
exec python /usr/local/bin/server.py "$bolt"
