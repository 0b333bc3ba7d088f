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
import ctypes
import os
import signal
import time

from pydantic import Field

from shared import watchdog
from shared.config import Settings
from shared.schemas import Command
from shared.service import BaseService, run_service


watchdog._MIN_LOOK_SECONDS = 0.25
watchdog._HELD_GIL_GRACE_SECONDS = 5.0


class ProbeSettings(Settings):
    mode: str = Field(default="idle")


class Probe(BaseService[ProbeSettings]):
    name = "probe"

    async def run(self) -> None:
        self.on_command("work", self.work)
        self.on_command("die", lambda _command: os.kill(os.getpid(), signal.SIGKILL))
        self.on_command("refresh", lambda _command: None)
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

    async def blocking(self) -> None:
        await self.mqtt.wait_connected()
        time.sleep(600)

    async def holding_the_gil(self) -> None:
        watchdog._HELD_GIL_GRACE_SECONDS = 0.0
        await self.wait_for_shutdown(0.5)
        ctypes.PyDLL(None).sleep(600)

    async def at_a_breakpoint(self) -> None:
        await self.mqtt.wait_connected()
        self.logger.info("stopping_here")
        breakpoint()
        await self.wait_for_shutdown()

    async def blocking_its_stop(self) -> None:
        await self.mqtt.wait_connected()
        self.logger.info("ready")
        await self.wait_for_shutdown()
        time.sleep(2 * self.settings.health_max_age_seconds)


raise SystemExit(run_service(Probe))
"""


class Process:
    """Process of the service, with its log read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._signalled: float | None = None

    async def logged(self, event: str) -> dict[str, Any]:
        """The next line of the log with this event."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._process.stdout:
                if not line.startswith(b"{"):
                    continue
                content: dict[str, Any] = json.loads(line)
                if content["event"] == event:
                    return content
        message = f"the process has ended without {event}"
        raise AssertionError(message)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._signalled = time.monotonic()

    def type(self, line: str) -> None:
        """Send a line to the prompt of a debugger."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def end(self) -> tuple[int | None, str]:
        """Return exit code and stderr. Check the time Docker gives if a signal was sent."""
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
            "HEALTH_PATH": str(tmp_path / "health/file"),
            "HEARTBEAT_INTERVAL_SECONDS": "0.2",
            **variables,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(program),
            cwd=tmp_path,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
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
    assert (tmp_path / "health/file").exists()
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


@pytest.mark.mosquitto
async def test_a_message_that_has_ended_the_process_three_times_is_not_handled(
    start: Start, observer: Observer
) -> None:
    for death in range(3):
        service = await start("idle")
        if not death:
            await observer.next("probe/availability", status="online")
            observer.publish("coordinator/command/probe", {"command": "die"})
            observer.publish("coordinator/command/probe", {"command": "refresh"})
        code, _ = await service.end()
        assert code == -signal.SIGKILL
    service = await start("idle")
    letter = await observer.next("errors/probe")
    assert letter["error_type"] == "FatalMessageError"
    assert json.loads(letter["payload"]) == {"command": "die"}
    # The messages behind it are handled, and the service stays.
    await observer.next("probe/response", command="refresh", status="ok")
    service.signal(signal.SIGTERM)
    assert (await service.end())[0] == 0


async def test_a_crash_says_goodbye_tells_why_and_exits_with_1(
    start: Start, observer: Observer
) -> None:
    service = await start("crashing")
    await observer.next("probe/availability", status="offline", reason="crashed")
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


MAX_AGE_SECONDS = 1
# Longer than the watchdog waits: the maximum age and two looks, which PROGRAM makes short.
LONGER_THAN_THE_WATCHDOG_SECONDS = 2


async def test_a_blocked_loop_ends_the_process(start: Start, observer: Observer) -> None:
    service = await start("blocking", HEALTH_MAX_AGE_SECONDS=str(MAX_AGE_SECONDS))
    await observer.next("probe/availability", status="online")
    await observer.next("probe/availability", status="offline", reason="connection_lost")
    code, errors = await service.end()
    assert code == os.EX_SOFTWARE
    line, *stacks = errors.splitlines()
    assert json.loads(line).items() >= {
        ("event", "event_loop_blocked"),
        ("level", "critical"),
        ("service", "probe"),
    }
    assert any(entry.endswith("in blocking") for entry in stacks)
    assert sum(entry.startswith(("Thread ", "Current thread ")) for entry in stacks) >= 3


async def test_the_watchdog_can_be_switched_off(start: Start, observer: Observer) -> None:
    options = {"HEALTH_MAX_AGE_SECONDS": str(MAX_AGE_SECONDS), "HEALTH_WATCHDOG": "false"}
    service = await start("blocking", **options)
    await observer.next("probe/availability", status="online")
    await asyncio.sleep(LONGER_THAN_THE_WATCHDOG_SECONDS)
    service.signal(signal.SIGKILL)
    assert await service.end() == (-signal.SIGKILL, "")


async def test_code_that_holds_the_gil_ends_the_process(start: Start) -> None:
    service = await start("holding_the_gil", HEALTH_MAX_AGE_SECONDS=str(MAX_AGE_SECONDS))
    code, errors = await service.end()
    assert code == 1
    assert errors.startswith("Timeout")
    assert "in holding_the_gil" in errors


async def test_a_suspended_process_goes_on(start: Start, observer: Observer) -> None:
    service = await start("idle", HEALTH_MAX_AGE_SECONDS=str(MAX_AGE_SECONDS))
    await observer.next("probe/heartbeat", status="online")
    service.signal(signal.SIGSTOP)
    await asyncio.sleep(LONGER_THAN_THE_WATCHDOG_SECONDS)
    service.signal(signal.SIGCONT)
    # Heartbeats come every 0.2 s, so the watchdog looks often meanwhile.
    for _ in range(5):
        await observer.next("probe/heartbeat")
    service.signal(signal.SIGTERM)
    assert await service.end() == (0, "")


async def test_a_breakpoint_does_not_end_the_process(start: Start, observer: Observer) -> None:
    service = await start("at_a_breakpoint", HEALTH_MAX_AGE_SECONDS=str(MAX_AGE_SECONDS))
    await service.logged("stopping_here")
    await asyncio.sleep(LONGER_THAN_THE_WATCHDOG_SECONDS)
    service.type("continue")
    for _ in range(5):
        await observer.next("probe/heartbeat")
    service.signal(signal.SIGTERM)
    assert await service.end() == (0, "")


async def test_a_slow_stop_is_not_cut_off(start: Start) -> None:
    service = await start("blocking_its_stop", HEALTH_MAX_AGE_SECONDS=str(MAX_AGE_SECONDS))
    await service.logged("ready")
    service.signal(signal.SIGTERM)
    assert await service.end() == (0, "")


async def test_a_network_thread_that_ends_is_a_crash(start: Start) -> None:
    """paho downgrades to MQTT 3.1 after return code 1, and raises when that connection fails."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        server.close()
        writer.write(b"\x20\x02\0\1")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1")
    port = str(server.sockets[0].getsockname()[1])
    service = await start("connecting", MQTT_PORT=port, HEALTH_MAX_AGE_SECONDS="5")
    crash = await service.logged("service_crashed")
    assert crash["exception"][0]["exc_value"] == "the MQTT network thread has ended"
    assert (await service.end())[0] == 1


async def test_what_a_service_does_not_use_is_not_imported() -> None:
    heavy = "{'httpx', 'aiohttp', 'debugpy', 'fastapi'}"
    program = f"import sys, shared.service; print({heavy} & set(sys.modules))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output.decode().strip() == "set()"


async def test_a_short_limit_does_not_end_a_process_whose_loop_runs() -> None:
    program = (
        "import asyncio; from shared.watchdog import Watchdog\n"
        "async def main(): Watchdog('idle', 1).start(); await asyncio.sleep(3.5)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    assert await process.wait() == 0
