"""Clear the retained messages of a service: its announcement and its availability.

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

COMMAND = "scripts/uv run --frozen python scripts/retained.py"
TIMEOUT_SECONDS = 5.0
# Publishes empty retained messages in the broker's container, which holds the password.
_CLEAR = """\
export XDG_CONFIG_HOME=/run/mosquitto/.config
mkdir -p "$XDG_CONFIG_HOME"
ln -sf mosquitto_sub "$XDG_CONFIG_HOME/mosquitto_pub"
for topic in "$@"; do mosquitto_pub -h 127.0.0.1 -q 1 -r -n -t "$topic" || exit 1; done
"""


def retained_topics(settings: Settings, name: str) -> list[str]:
    """Return the topics of the retained messages that the library publishes for a service."""
    topics = [f"{settings.topic_prefix}/{name}/availability"]
    if getattr(settings, "ha_discovery_prefix", ""):
        # Only repositories with MQTT discovery have this module.
        discovery = importlib.import_module("shared.discovery")
        # First, because readers of the announcement would see an empty availability otherwise.
        topics.insert(0, discovery.config_topic(settings, name))
    return topics


def clear(name: str) -> str:
    """Clear the retained messages of a service that is stopped. Return why that failed, or ""."""
    try:
        settings = load_settings(Settings)
        topics = retained_topics(settings, name)
        if settings.mqtt_host == "mqtt":
            return _clear_in_container(topics)
        asyncio.run(_publish_empty(settings, topics))
    except (ConfigurationError, MQTTError) as error:
        return str(error)
    return ""


def _clear_in_container(topics: list[str]) -> str:
    shell = ("docker", "compose", "exec", "-T", "mqtt", "sh", "-c", _CLEAR, "sh")
    done = run(*shell, *topics)
    return " ".join(done.stderr.split()) if done.returncode else ""


async def _publish_empty(settings: Settings, topics: list[str]) -> None:
    name = f"clear-{secrets.token_hex(4)}"
    client = MQTTClient.from_settings(settings, name, structlog.stdlib.get_logger())
    client.connect_background()
    try:
        await client.wait_connected(TIMEOUT_SECONDS)
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
    # The clients log each attempt otherwise.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    raise SystemExit(main())
