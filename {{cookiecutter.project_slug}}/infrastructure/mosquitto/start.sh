#!/bin/sh
# Starts the broker: with a password as soon as MQTT_PASSWORD is set, open within the internal
# network while it is not.
set -eu
umask 077
run=/run/mosquitto
mkdir -p "$run/conf.d"

if [ -n "${MQTT_PASSWORD:-}" ]; then
  # printf is part of the shell, and the tool reads a file: no password in a process list.
  printf '%s:%s\n' "$MQTT_USERNAME" "$MQTT_PASSWORD" >"$run/passwords"
  mosquitto_passwd -U "$run/passwords"
  printf 'allow_anonymous false\npassword_file %s/passwords\n' "$run" >"$run/conf.d/access.conf"
  # For healthcheck.sh: the clients read their options from here.
  mkdir -p "$run/.config"
  printf -- '--username %s\n--pw %s\n' "$MQTT_USERNAME" "$MQTT_PASSWORD" >"$run/.config/mosquitto_sub"
else
  printf 'allow_anonymous true\n' >"$run/conf.d/access.conf"
fi
unset MQTT_PASSWORD

exec mosquitto -c /mosquitto/config/mosquitto.conf
