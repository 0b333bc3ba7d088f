"""A service as Docker runs it: a process of its own, ended by signals."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker, free_port
from tests.library.conftest import Mosquitto
from tests.observer import PATIENCE_SECONDS, Observer

ROOT = Path(__file__).resolve().parents[2]
DOCKER_STOP_SECONDS = 10

PROGRAM = """
import asyncio
import time

from pydantic import Field

from shared.config import Settings
from shared.schemas import Command
from shared.service import BaseService, run_service


class ProbeSettings(Settings):
    mode: str = Field(default="idle")


class Probe(BaseService[ProbeSettings]):
    name = "probe"

    async def run(self) -> None:
        self.on_command("work", self.work)
        self.mqtt.connect_background()
        await getattr(self, self.settings.mode)()

    async def work(self, command: Command) -> None:
        await self.publish("working", {})
        await asyncio.Event().wait()

    async def idle(self) -> None:
        await self.wait_for_shutdown()

    async def connecting(self) -> None:
        self.logger.info("connecting")
        await self.mqtt.wait_connected()

    async def publishing(self) -> None:
        await self.mqtt.wait_connected()
        self.logger.info("publishing")
        while True:
            await self.publish("number", {})

    async def crashing(self) -> None:
        await self.mqtt.wait_connected()
        raise LookupError("broken")

    async def threaded(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
        await self.mqtt.wait_connected()
        await self.publish("ready", {})
        await self.wait_for_shutdown()


raise SystemExit(run_service(Probe))
"""


class Process:
    """The service's process; its log is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._signalled: float | None = None

    async def logged(self, event: str) -> dict[str, Any]:
        """The next line of the log with this event."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._process.stdout:
                content: dict[str, Any] = json.loads(line)
                if content["event"] == event:
                    return content
        message = f"the process has ended without {event}"
        raise AssertionError(message)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._signalled = time.monotonic()

    async def end(self) -> tuple[int | None, str]:
        """Exit code and what was written to stderr; after a signal in the time Docker gives."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            _, errors = await self._process.communicate()
        if self._signalled is not None:
            assert time.monotonic() - self._signalled < DOCKER_STOP_SECONDS
        return self._process.returncode, errors.decode()

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()


type Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(broker: Broker, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Start]:
    program = tmp_path / "main.py"
    program.write_text(PROGRAM, encoding="utf-8")
    started: list[Process] = []

    async def start(mode: str, **variables: str) -> Process:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MODE": mode,
            "TOPIC_PREFIX": topic_prefix,
            "MQTT_HOST": broker.host,
            "MQTT_PORT": str(broker.port),
            "DATA_DIR": str(tmp_path / "data"),
            "HEARTBEAT_INTERVAL_SECONDS": "0.2",
            **variables,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(program),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(Process(process))
        return started[-1]

    yield start
    for process in started:
        await process.close()


@pytest.fixture
async def observer(broker: Broker, topic_prefix: str) -> AsyncIterator[Observer]:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        yield observer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_from_birth_to_an_orderly_end(
    start: Start, observer: Observer, tmp_path: Path, number: signal.Signals
) -> None:
    service = await start("idle")
    await observer.next("probe/availability", status="online")
    heartbeat = await observer.next("probe/heartbeat", status="online")
    assert heartbeat["service"] == "probe"
    assert (tmp_path / "data" / "healthcheck").exists()
    service.signal(number)
    await observer.next("probe/availability", status="offline", reason="stopped")
    assert await service.end() == (0, "")


async def test_a_killed_service_leaves_its_last_will(
    start: Start, observer: Observer, broker: Broker, topic_prefix: str
) -> None:
    service = await start("idle")
    await observer.next("probe/availability", status="online")
    service.signal(signal.SIGKILL)
    await observer.next("probe/availability", status="offline", reason="connection_lost")
    async with Observer(broker.host, broker.port, topic_prefix) as late:
        # Retained: the `online` of before must not greet who comes now.
        await late.next("probe/availability", status="offline", reason="connection_lost")


async def test_a_crash_says_goodbye_tells_why_and_exits_with_1(
    start: Start, observer: Observer
) -> None:
    service = await start("crashing")
    await observer.next("probe/availability", status="offline", reason="stopped")
    crash = await service.logged("service_crashed")
    assert crash["exception"][0]["exc_type"] == "LookupError"
    assert await service.end() == (1, "")


async def test_unusable_settings_exit_with_78_and_a_line_for_each_problem(start: Start) -> None:
    service = await start("idle", MQTT_PORT="hunter2", LOG_LEVEL="LOUD")
    code, errors = await service.end()
    assert code == 78
    assert [line.split(":")[:2] for line in errors.splitlines()] == [
        ["probe", " LOG_LEVEL"],
        ["probe", " MQTT_PORT"],
    ]
    assert "hunter2" not in errors


async def test_sigterm_while_connecting(start: Start) -> None:
    service = await start("connecting", MQTT_PORT=str(free_port()))
    await service.logged("connecting")
    service.signal(signal.SIGTERM)
    assert await service.end() == (0, "")


async def test_sigterm_while_a_handler_works(start: Start, observer: Observer) -> None:
    service = await start("idle")
    await observer.next("probe/availability", status="online")
    observer.publish("coordinator/command/probe", {"command": "work"})
    await observer.next("probe/working")
    service.signal(signal.SIGTERM)
    await observer.next("probe/availability", status="offline", reason="stopped")
    assert await service.end() == (0, "")


async def test_sigterm_while_the_broker_leaves_a_publish_unanswered(
    start: Start, mosquitto: Mosquitto
) -> None:
    service = await start("publishing", MQTT_PORT=str(mosquitto.port))
    await service.logged("publishing")
    mosquitto.freeze()
    try:
        service.signal(signal.SIGTERM)
        assert await service.end() == (0, "")
    finally:
        mosquitto.resume()


async def test_a_thread_that_never_ends_does_not_hold_the_process(
    start: Start, observer: Observer
) -> None:
    service = await start("threaded")
    await observer.next("probe/ready")
    service.signal(signal.SIGTERM)
    assert await service.end() == (0, "")


async def test_what_a_service_does_not_use_is_not_imported() -> None:
    heavy = "{'httpx', 'aiohttp', 'debugpy', 'fastapi'}"
    program = f"import sys, shared.service; print({heavy} & set(sys.modules))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output.decode().strip() == "set()"
