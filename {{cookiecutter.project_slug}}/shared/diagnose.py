"""Step-by-step diagnosis of the systems that a service needs.

The `diagnose.py` of a service calls `main(MySettings)`, with its own steps if it has any.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
{% if cookiecutter.include_influxdb %}
from pathlib import Path
{% endif %}
from typing import Any
{% if cookiecutter.include_influxdb %}
from urllib.parse import urlsplit
{% endif %}

import structlog
from structlog.testing import capture_logs

from shared.config import ConfigurationError, Settings, load_settings
from shared.mqtt import MQTTClient, MQTTError
from shared.redaction import redact_text

_STEP_TIMEOUT_SECONDS = 30.0
_MQTT_TIMEOUT_SECONDS = 10.0
# Below the timeout, so that a server that sends nothing is recognized in time.
_MQTT_KEEPALIVE_SECONDS = 5


class Status(StrEnum):
    PASS = "PASS"  # noqa: S105
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


_COLOURS = {Status.PASS: 32, Status.WARN: 33, Status.FAIL: 31, Status.SKIP: 90}


@dataclass(frozen=True)
class Result:
    """Result of a step, with the fix of a failure."""

    status: Status
    detail: str
    fix: str = ""
    step: str = ""


@dataclass(frozen=True)
class Step:
    """One check. `run` gets the settings of the service, and has 30 seconds."""

    name: str
    run: Callable[[Any], Awaitable[Result]]


def passed(detail: str) -> Result:
    return Result(Status.PASS, detail)


def warned(detail: str, fix: str) -> Result:
    return Result(Status.WARN, detail, fix)


def failed(detail: str, fix: str) -> Result:
    return Result(Status.FAIL, detail, fix)


def main(
    settings_class: type[Settings],
    steps: Sequence[Step] = (),
    arguments: Sequence[str] | None = None,
) -> int:
    """Run the steps, print their results and return 1 if one has failed."""
    all_steps = [*_library_steps(), *steps]
    options = _parse([step.name for step in all_steps], arguments)
    wanted = options.step or [step.name for step in all_steps]
    # Capture the log lines of the clients, because they would mix with the results.
    try:
        with capture_logs():
            results = asyncio.run(_run(settings_class, [s for s in all_steps if s.name in wanted]))
    except KeyboardInterrupt:
        return 130
    _print(results, as_json=options.json)
    return int(any(result.status is Status.FAIL for result in results))


def _parse(names: list[str], arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check what this service needs, step by step.")
    parser.add_argument(
        "--step",
        action="append",
        choices=["config", *names, "all"],
        help="run only this step after config. May be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    if options.step and "all" in options.step:
        options.step = None
    return options


async def _run(settings_class: type[Settings], steps: Sequence[Step]) -> list[Result]:
    try:
        settings = load_settings(settings_class)
    except ConfigurationError as error:
        config = failed("; ".join(error.problems), "correct these variables in .env")
        skipped = Result(Status.SKIP, "the configuration is not valid")
        return [
            replace(config, step="config"),
            *(replace(skipped, step=step.name) for step in steps),
        ]
    results = [replace(passed("all settings are valid"), step="config")]
    results += [replace(await _guarded(step, settings), step=step.name) for step in steps]
    # A URL may hold a password.
    return [
        replace(result, detail=redact_text(result.detail), fix=redact_text(result.fix))
        for result in results
    ]


async def _guarded(step: Step, settings: Settings) -> Result:
    """Run a step. An exception is a failed step, so that the next one still runs."""
    try:
        async with asyncio.timeout(_STEP_TIMEOUT_SECONDS):
            return await step.run(settings)
    except TimeoutError:
        return failed(f"no result in {_STEP_TIMEOUT_SECONDS:g} s", "check whether the server hangs")
    except ConfigurationError as error:
        return failed(str(error), "set it to a readable PEM file, or leave it empty")
    except Exception as error:  # noqa: BLE001 - reported as the result
        return failed(f"{type(error).__name__}: {error}", "correct this step in the code")


def _library_steps() -> list[Step]:
    return [
        Step("data", check_data_directory),
        Step("mqtt", check_mqtt),
{% if cookiecutter.include_home_assistant %}
        Step("home-assistant", check_home_assistant),
        Step("discovery", check_discovery),
{% endif %}
{% if cookiecutter.include_influxdb %}
        Step("influxdb", check_influxdb),
{% endif %}
    ]


async def check_data_directory(settings: Settings) -> Result:
    directory = settings.data_dir
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory):
            pass
    except OSError as error:
        return failed(
            f"{directory}: {error.strerror}",
            "mount a volume there that the user of the service can write to",
        )
    return passed(f"{directory} is writable")


async def check_mqtt(settings: Settings) -> Result:
    """Connect, publish a message and receive it."""
    address = f"{settings.mqtt_host}:{settings.mqtt_port}"
    # Use a new name, because the availability of a running service must not change.
    name = f"diagnose-{secrets.token_hex(4)}"
    settings = settings.model_copy(update={"mqtt_keepalive_seconds": _MQTT_KEEPALIVE_SECONDS})
    client = MQTTClient.from_settings(settings, name, structlog.stdlib.get_logger())
    received = asyncio.Event()
    topic = f"{settings.topic_prefix}/{name}/echo"
    client.subscribe(topic, lambda _topic, _payload: received.set())
    try:
        with capture_logs() as log:
            client.connect_background()
            try:
                await client.wait_connected(_MQTT_TIMEOUT_SECONDS)
            except MQTTError as error:
                return _not_connected(error, log, address)
        try:
            async with asyncio.timeout(_MQTT_TIMEOUT_SECONDS):
                await client.publish(topic, {"from": name})
                await received.wait()
        except (MQTTError, TimeoutError):
            return failed(
                f"{address}: connected, but a message on {topic} was not received",
                "allow the user to read and write below the topic prefix in the ACL of the broker",
            )
    finally:
        await client.disconnect(keep_status=False)
    return passed(f"{address}: connected, and a message was received")


def _not_connected(error: MQTTError, log: Sequence[Mapping[str, Any]], address: str) -> Result:
    for entry in reversed(log):
        if entry["event"] == "mqtt_connection_refused":
            return failed(f"{address} rejects the connection: {entry['reason']}", entry["hint"])
        if entry["event"] == "mqtt_no_connack":
            detail = f"{address} accepts the connection, but sends no CONNACK: {entry['reason']}"
            return failed(detail, entry["hint"])
    reasons = [entry["reason"] for entry in log if entry["event"] == "mqtt_unreachable"]
    if reasons and "key usage extension" in reasons[-1]:
        return failed(
            f"{address}: {reasons[-1]}",
            "create a CA with keyUsage and a new certificate of the broker, see docs/containers.md",
        )
    return failed(
        f"{error}: {reasons[-1]}" if reasons else str(error),
        f"start the broker (make up), or correct {address} (MQTT_HOST, MQTT_PORT, MQTT_TLS)",
    )
{% if cookiecutter.include_home_assistant %}


async def check_home_assistant(settings: Settings) -> Result:
    from shared.api_client import APIError, AuthenticationError  # noqa: PLC0415
    from shared.home_assistant import HomeAssistantClient  # noqa: PLC0415

    if not settings.ha_token.get_secret_value():
        return Result(
            Status.SKIP,
            "not set up: HA_TOKEN is empty",
            "set it to a long-lived access token, from your profile page in Home Assistant",
        )
    async with HomeAssistantClient.from_settings(settings, structlog.stdlib.get_logger()) as client:
        try:
            await client.ping()
        except AuthenticationError as error:
            return failed(str(error), "create a new long-lived access token and set HA_TOKEN to it")
        except APIError as error:
            return failed(str(error), f"check that HA_URL ({settings.ha_url}) is right")
    return passed(f"{settings.ha_url}: connected, token accepted")


async def check_discovery(settings: Settings) -> Result:
    """Look for the announcements on the broker, and for their entities in Home Assistant."""
    from shared.announcer import find_announced  # noqa: PLC0415

    prefix = settings.ha_discovery_prefix
    if not prefix:
        return Result(Status.SKIP, "HA_DISCOVERY_PREFIX is empty, so no service is announced")
    name = f"diagnose-{secrets.token_hex(4)}"
    client = MQTTClient.from_settings(settings, name, structlog.stdlib.get_logger())
    try:
        client.connect_background()
        await client.wait_connected(_MQTT_TIMEOUT_SECONDS)
        devices = await find_announced(client, settings)
    except MQTTError as error:
        return failed(str(error), "correct what the step mqtt reports")
    finally:
        await client.disconnect(keep_status=False)
    if not devices:
        return failed(
            f"no service is announced below {prefix}/device/",
            f"start a service, and allow its user to read and write {prefix}/# in the broker's ACL",
        )
    return await _check_entities(settings, devices)


async def _check_entities(settings: Settings, devices: Mapping[str, str]) -> Result:
    from shared.api_client import APIError  # noqa: PLC0415
    from shared.home_assistant import HomeAssistantClient  # noqa: PLC0415

    names = ", ".join(devices.values())
    if not settings.ha_token.get_secret_value():
        return passed(f"announced: {names} (Home Assistant is not checked without HA_TOKEN)")
    # The REST API has no entity registry, but templates read it.
    template = "{% raw %}{{ integration_entities('mqtt') | map('device_attr', 'identifiers') | list }}{% endraw %}"
    async with HomeAssistantClient.from_settings(settings, structlog.stdlib.get_logger()) as client:
        try:
            known = await client.render_template(template)
        except APIError as error:
            return failed(str(error), "set HA_TOKEN to a token of an administrator")
    if missing := [name for key, name in devices.items() if f"'{key}'" not in known]:
        return failed(
            f"announced, but not in Home Assistant: {', '.join(missing)}",
            "add its MQTT integration, with the same broker and the discovery prefix"
            f" {settings.ha_discovery_prefix}",
        )
    return passed(f"in Home Assistant: {names}")
{% endif %}
{% if cookiecutter.include_influxdb %}


async def check_influxdb(settings: Settings) -> Result:
    from shared.influx import InfluxClient, InfluxError  # noqa: PLC0415

    if not settings.influx_token.get_secret_value():
        return Result(
            Status.SKIP,
            "not set up: INFLUX_TOKEN is empty",
            "set it to 8 to 72 characters for the container, or to a token of your server",
        )
    async with InfluxClient.from_settings(settings, structlog.stdlib.get_logger()) as client:
        try:
            await client.ping()
        except InfluxError as error:
            # Only containers reach the one of Compose. None of them has this directory.
            is_host = (Path(__file__).parents[1] / "services").is_dir()
            if is_host and urlsplit(settings.influx_url).hostname == "influxdb":
                return Result(
                    Status.SKIP,
                    "not checked: this machine does not reach the container influxdb",
                    "run make diagnose without HOST=1, or set INFLUX_URL to another server",
                )
            fix = f"start it (make up), or correct INFLUX_URL ({settings.influx_url})"
            return failed(str(error), fix)
        try:
            await client.query("buckets() |> limit(n: 1)")
        except InfluxError as error:
            return failed(
                str(error),
                "set INFLUX_TOKEN and INFLUX_ORG to those of the first start of the container, or"
                " to those that you created in InfluxDB later",
            )
    return passed(f"{settings.influx_url}: connected, query succeeded")
{% endif %}


def _print(results: Sequence[Result], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([asdict(result) for result in results], indent=2) + "\n")
        return
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = max(len(result.step) for result in results)
    for result in results:
        status = f"{result.status:<4}"
        if coloured:
            status = f"\033[{_COLOURS[result.status]}m{status}\033[0m"
        detail, fix = _wrap(result.detail, width + 8), _wrap(result.fix, width + 11)
        sys.stdout.write(f"{status}  {result.step:<{width}}  {detail}\n")
        if fix:
            sys.stdout.write(f"{'':<{width + 8}}-> {fix}\n")


def _wrap(text: str, indent: int) -> str:
    """Wrap a text for the terminal, if there is one. Several lines hold commands to copy."""
    if "\n" in text or not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - indent, 30)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"\n{'':<{indent}}".join(lines)
