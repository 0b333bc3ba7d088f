"""Clear the retained messages of a service: its announcement, and all on topics of its own.

    scripts/uv run --frozen python scripts/retained.py NAME

remove-service.sh and rename-service.sh do the same when the broker can be reached.
"""

import asyncio
import importlib
import logging
import secrets
import sys

import structlog
from common import ROOT, make_parser, run

sys.path.insert(0, str(ROOT))

from shared.config import ConfigurationError, Settings, load_settings
from shared.mqtt import MQTTClient, MQTTError
from tests.brokers import listens

COMMAND = "scripts/uv run --frozen python scripts/retained.py"
TIMEOUT_SECONDS = 5.0
# Nothing marks the end of the retained messages that a broker sends.
RECEIVE_SECONDS = 2
# Runs in the broker's container, which holds the password, and ends with a timeout.
_CLEAR = f"""\
export XDG_CONFIG_HOME=/run/mosquitto/.config
mosquitto_sub -h 127.0.0.1 --retained-only --remove-retained -W {RECEIVE_SECONDS} "$@" >/dev/null
[ $? = 27 ]
"""


def retained_by(settings: Settings, name: str) -> list[str]:
    """Return filters for the topics on which only this service has retained messages."""
    filters = [f"{settings.topic_prefix}/{name}/#"]
    if getattr(settings, "ha_discovery_prefix", ""):
        # Only repositories with MQTT discovery have this module.
        discovery = importlib.import_module("shared.discovery")
        # First, because readers of the announcement would see an empty availability otherwise.
        filters.insert(0, discovery.config_topic(settings, name))
    return filters


def clear(name: str) -> str:
    """Clear the retained messages of a service that is stopped. Return why that failed, or ""."""
    # The client would log its connection.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        settings = load_settings(Settings)
        filters = retained_by(settings, name)
        if settings.mqtt_host == "mqtt":
            problem = _clear_in_container(filters)
            if not problem or not listens("127.0.0.1", settings.mqtt_port):
                return problem
            # The broker of `make run`.
            settings = settings.model_copy(update={"mqtt_host": "127.0.0.1"})
        asyncio.run(_clear_from_here(settings, filters))
    except (ConfigurationError, MQTTError) as error:
        return str(error)
    return ""


def _clear_in_container(filters: list[str]) -> str:
    shell = ("docker", "compose", "exec", "-T", "mqtt", "sh", "-c", _CLEAR, "sh")
    done = run(*shell, *(word for topic_filter in filters for word in ("-t", topic_filter)))
    return " ".join(done.stderr.split()) if done.returncode else ""


async def _clear_from_here(settings: Settings, filters: list[str]) -> None:
    topics: list[str] = []

    def receive(topic: str, payload: bytes) -> None:
        # The empty messages that are sent below arrive as well.
        if payload:
            topics.append(topic)

    name = f"clear-{secrets.token_hex(4)}"
    client = MQTTClient.from_settings(settings, name, structlog.stdlib.get_logger())
    for topic_filter in filters:
        client.subscribe(topic_filter, receive, payload_format="bytes")
    client.connect_background()
    try:
        await client.wait_connected(TIMEOUT_SECONDS)
        await asyncio.sleep(RECEIVE_SECONDS)
        for topic in topics:
            await client.publish(topic, None, retain=True)
    finally:
        await client.disconnect(keep_status=False)


def main() -> int:
    """Run the command line. Return 1 when the messages could not be cleared."""
    parser = make_parser(__doc__, "0 done, 1 failed, 2 wrong usage")
    parser.add_argument("name", metavar="NAME", help="a service that does not run any more")
    problem = clear(parser.parse_args().name)
    if problem:
        sys.stderr.write(f"{problem}\n")
    return int(bool(problem))


if __name__ == "__main__":
    raise SystemExit(main())
