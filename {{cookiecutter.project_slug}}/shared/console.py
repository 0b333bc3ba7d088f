"""Show messages or heartbeats, or send a command: `make watch`, `make status`, `make send`.

It connects without a session, a birth message and a last will, so no service notices it.
"""

import argparse
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import ValidationError

from shared.config import ConfigurationError, Settings, load_settings
from shared.mqtt.client import mqtt_credentials, mqtt_tls_context
from shared.schemas import Heartbeat
from shared.timestamps import format_utc

_TIMEOUT_SECONDS = 10.0
_CHECK = "Check it: make diagnose SERVICE=name"
_LOST = "The broker has closed the connection."
_RED, _CYAN, _GREY = 31, 36, 90


class ConsoleError(Exception):
    """The broker rejected the connection, or no reply arrived in time."""


def watch(settings: Settings, topic_filters: Sequence[str]) -> None:
    """Print the messages on these topic filters until Ctrl-C. Raises ConsoleError."""
    client = _connect(settings, topic_filters, _print_message)
    client.on_disconnect = _report_lost
    sys.stderr.write(f"Waiting for messages on {', '.join(topic_filters)}. Ctrl-C ends.\n")
    try:
        client.loop_forever()
    except KeyboardInterrupt:
        client.on_disconnect = None
        client.disconnect()


def heartbeats(settings: Settings) -> None:
    """Print for how many seconds heartbeats are received, then each as `SERVICE JSON`.

    The process ends with SIGALRM after these seconds. Raises ConsoleError.
    """
    if not settings.heartbeat_interval_seconds:
        message = "HEARTBEAT_INTERVAL_SECONDS is 0, so there are no heartbeats."
        raise ConsoleError(message)

    def receive(message: MQTTMessage) -> None:
        try:
            heartbeat = Heartbeat.model_validate_json(message.payload)
        except ValidationError:
            sys.stderr.write(f"{_printable(message.topic)}: not a valid heartbeat\n")
            return
        sys.stdout.write(f"{message.topic.split('/')[-2]} {heartbeat.model_dump_json()}\n")
        sys.stdout.flush()

    client = _connect(settings, [f"{settings.topic_prefix}/+/heartbeat"], receive)
    seconds = int(settings.heartbeat_interval_seconds) + 5
    sys.stdout.write(f"{seconds}\n")
    sys.stdout.flush()
    # `docker exec` does not end the process when its own caller ends.
    signal.alarm(seconds)
    client.loop_forever()


def send(settings: Settings, service: str, command: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Send a command and return the reply. Raises ConsoleError without one in 10 s."""
    request_id = secrets.token_hex(8)
    reply_to = f"{settings.topic_prefix}/console/response/{request_id}"
    replies: list[bytes | bytearray] = []
    client = _connect(settings, [reply_to], lambda message: replies.append(message.payload))
    now = datetime.now(UTC)
    request = {
        "command": command,
        "request_id": request_id,
        "reply_to": reply_to,
        "timestamp": format_utc(now),
        "expires_at": format_utc(now + timedelta(seconds=_TIMEOUT_SECONDS)),
        **fields,
    }
    try:
        topic = f"{settings.topic_prefix}/coordinator/command/{service}"
        client.publish(topic, json.dumps(request), qos=1)
        sys.stderr.write(f"Waiting up to {_TIMEOUT_SECONDS:g} s for the reply of {service}.\n")
        problem = f"{service} did not reply. Does it run? make status shows containers."
        _loop_until(client, lambda: bool(replies), problem)
    finally:
        client.disconnect()
    reply: dict[str, Any] = json.loads(replies[0])
    return reply


def _connect(
    settings: Settings, topic_filters: Sequence[str], receive: Callable[[MQTTMessage], None]
) -> Client:
    """Return a client that subscribes after each connect. Raises ConsoleError."""
    client = Client(CallbackAPIVersion.VERSION2, transport=settings.mqtt_transport)
    if settings.mqtt_transport == "websockets":
        client.ws_set_options(path=settings.mqtt_websocket_path)
    if settings.mqtt_tls:
        client.tls_set_context(mqtt_tls_context(settings))
    username, password = mqtt_credentials(settings)
    if username or password:
        client.username_pw_set(username, password)

    def on_connect(
        client: Client,
        _data: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            message = f"{address} rejects the connection: {reason}"
            raise ConsoleError(message)
        client.subscribe([(topic_filter, 1) for topic_filter in topic_filters])

    address = f"{settings.mqtt_host}:{settings.mqtt_port}"
    client.on_connect = on_connect
    client.on_message = lambda _client, _data, message: receive(message)
    try:
        client.connect(settings.mqtt_host, settings.mqtt_port)
    except OSError as error:
        message = f"{address}: {error}. {_CHECK}"
        raise ConsoleError(message) from error
    _loop_until(client, client.is_connected, f"{address} does not accept the connection. {_CHECK}")
    return client


def _loop_until(client: Client, condition: Callable[[], bool], problem: str) -> None:
    """Receive until the condition is true. Raises ConsoleError after 10 s or a lost connection."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        was_connected = client.is_connected()
        is_lost = client.loop(timeout=0.2) != MQTTErrorCode.MQTT_ERR_SUCCESS
        if is_lost and was_connected:
            message = f"{_LOST} {_CHECK}"
            raise ConsoleError(message)
        if is_lost or time.monotonic() > deadline:
            raise ConsoleError(problem)


def _print_message(message: MQTTMessage) -> None:
    levels = message.topic.split("/")
    colour = _RED if "errors" in levels else _CYAN
    if levels[-1] in {"availability", "heartbeat"}:
        colour = _GREY
    topic = _printable(message.topic)
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        topic = f"\033[{colour}m{topic}\033[0m"
    mark = " (retained)" if message.retain else ""
    text = _printable(message.payload.decode(errors="backslashreplace"))
    sys.stdout.write(f"{datetime.now():%H:%M:%S}  {topic}{mark}  {text}\n")  # noqa: DTZ005 - local
    sys.stdout.flush()


def _report_lost(*_: object) -> None:
    sys.stderr.write(f"{_LOST} Waiting for it. Ctrl-C ends.\n")


def _printable(text: str) -> str:
    """Escape what would control a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        message = f"must be a JSON object, not {text}"
        raise argparse.ArgumentTypeError(message)
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. 1 for a reply with an error, 2 without a connection or a reply, 130 for Ctrl-C.

    Ctrl-C while messages are shown is the usual end, with 0.
    """
    parser = argparse.ArgumentParser(prog="console", description="Show messages or send a command.")
    commands = parser.add_subparsers(dest="action", required=True)
    watching = commands.add_parser("watch", help="show messages until Ctrl-C")
    watching.add_argument("--service", help="only those from and to this service")
    watching.add_argument("--topic", help="only those on this topic filter")
    commands.add_parser("heartbeats", help="print the heartbeats of one interval")
    sending = commands.add_parser("send", help="send a command and print the reply")
    sending.add_argument("service")
    sending.add_argument("command")
    sending.add_argument("fields", nargs="?", default={}, type=_json_object, help="JSON object")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings(Settings)
        prefix = settings.topic_prefix
        if options.action == "send":
            reply = send(settings, options.service, options.command, options.fields)
            sys.stdout.write(json.dumps(reply, indent=2) + "\n")
            return int(reply.get("status") == "error")
        if options.action == "heartbeats":
            heartbeats(settings)
        filters = [options.topic] if options.topic else []
        if name := options.service:
            topics = (f"{name}/#", f"coordinator/command/{name}", f"errors/{name}")
            filters += [f"{prefix}/{topic}" for topic in topics]
        watch(settings, filters or [f"{prefix}/#"])
    except (ConfigurationError, ConsoleError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
