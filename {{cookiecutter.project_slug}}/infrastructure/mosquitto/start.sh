#!/bin/sh
# Starts the broker: with a password as soon as MQTT_PASSWORD is set, open within the internal
# network while it is not.
set -eu
umask 077
run=/run/mosquitto
mkdir -p "$run/conf.d"
# For deploy.sh, which restarts a broker whose configuration has changed since.
find /mosquitto/config -type f -exec cksum {} + | sort >"$run/config.cksum"

if [ -n "${MQTT_PASSWORD:-}" ]; then
  # printf is part of the shell, so no password gets into a process list. From a file of name and
  # password (-U) the tool would cut a password at a colon, and spaces off its ends.
  printf '%s\n%s\n' "$MQTT_PASSWORD" "$MQTT_PASSWORD" |
    mosquitto_passwd -c "$run/passwords" "$MQTT_USERNAME" >/dev/null
  printf 'allow_anonymous false\npassword_file %s/passwords\n' "$run" >"$run/conf.d/access.conf"
  # For the health check in docker-compose.yml: clients read their options from here.
  mkdir -p "$run/.config"
  printf -- '--username %s\n--pw %s\n' "$MQTT_USERNAME" "$MQTT_PASSWORD" >"$run/.config/mosquitto_sub"
else
  printf 'allow_anonymous true\n' >"$run/conf.d/access.conf"
fi
unset MQTT_PASSWORD

exec mosquitto -c /mosquitto/config/mosquitto.conf
