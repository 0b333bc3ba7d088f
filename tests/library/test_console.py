"""`make watch` and `make send`, with a real broker."""

import asyncio
import json
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

from shared import console
from shared.config import Settings
from shared.schemas import Command
from shared.service import BaseService
from tests.brokers import Broker
from tests.library.conftest import Mosquitto
from tests.observer import Observer
from tests.probes import soon
from tests.running import running

ROOT = Path(__file__).resolve().parent.parent.parent

type Start = Callable[..., Awaitable[Process]]


class Lamp(BaseService[Settings]):
    """Switches on command."""

    name = "lamp"

    async def run(self) -> None:
        self.on_command("switch", self._switch)
        self.mqtt.connect_background()
        await self.wait_for_shutdown()

    async def _switch(self, command: Command) -> dict[str, Any]:
        return {"is_on": (command.model_extra or {})["is_on"]}


@pytest.fixture
async def start(
    broker: Broker, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Starts the program on this broker. A process that still runs is ended."""
    monkeypatch.setenv("MQTT_HOST", broker.host)
    monkeypatch.setenv("MQTT_PORT", str(broker.port))
    monkeypatch.setenv("TOPIC_PREFIX", topic_prefix)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    processes: list[Process] = []

    async def start(*arguments: str) -> Process:
        command = (sys.executable, "-m", "shared.console", *arguments)
        processes.append(await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE))
        return processes[-1]

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def output(process: Process) -> tuple[int | None, str, str]:
    out, err = await soon(process.communicate())
    return process.returncode, out.decode(), err.decode()


@pytest.mark.usefixtures("start")
async def test_send_prints_the_reply(
    make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    async def send(*arguments: str) -> tuple[int, str]:
        code = await soon(asyncio.to_thread(console.main, ["send", *arguments]))
        return code, capsys.readouterr().out

    async with running(Lamp(make_settings())):
        capsys.readouterr()
        code, out = await send("lamp", "switch", '{"is_on": true}')
        assert code == 0
        assert '"is_on": true' in out
        code, out = await send("lamp", "explode")
        assert code == 1
        assert '"status": "error"' in out


@pytest.mark.usefixtures("start")
async def test_a_command_without_a_reply_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_TIMEOUT_SECONDS", 0.5)
    assert await soon(asyncio.to_thread(console.main, ["send", "nobody", "switch"])) == 2
    assert "nobody did not reply. Does it run? make status shows" in capsys.readouterr().err


async def test_watch_shows_the_messages_of_one_service_without_control_characters(
    start: Start, broker: Broker, topic_prefix: str
) -> None:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        process = await start("watch", "--service", "lamp")
        assert process.stderr is not None
        assert process.stdout is not None
        assert b"Ctrl-C ends" in await soon(process.stderr.readline())
        observer.publish("other/switched", {"is_on": False})
        # The subscription follows the line on stderr, so the message repeats until it is shown.
        line = asyncio.create_task(process.stdout.readline())
        while not line.done():
            observer.publish("lamp/switched", {"by": "\x1b[31mred"})
            await asyncio.wait({line}, timeout=0.2)
        assert f"{topic_prefix}/lamp/switched" in line.result().decode()
        assert b"\x1b" not in line.result()
        process.send_signal(SIGINT)
        code, out, _ = await output(process)
        assert code == 0
        assert "other" not in out


async def test_heartbeats_are_printed_for_one_interval(
    start: Start, broker: Broker, topic_prefix: str
) -> None:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        process = await start("heartbeats")
        assert process.stdout is not None
        assert process.stderr is not None
        assert await soon(process.stdout.readline()) == b"65\n"
        fields = {"service": "lamp", "status": "online", "uptime_seconds": 1, "memory_mb": 2}
        # The subscription follows the connection, so the messages repeat until both are shown.
        lines = asyncio.gather(process.stdout.readline(), process.stderr.readline())
        while not lines.done():
            observer.publish("lamp/heartbeat", {**fields, "instance": 2})
            observer.publish("lamp/heartbeat", {"status": "unknown"})
            await asyncio.wait({lines}, timeout=0.2)
        heartbeat, complaint = lines.result()
        assert heartbeat.startswith(b"lamp {")
        assert json.loads(heartbeat.removeprefix(b"lamp "))["instance"] == 2
        assert complaint == f"{topic_prefix}/lamp/heartbeat: not a valid heartbeat\n".encode()


async def test_without_heartbeats_the_reason_is_named(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTBEAT_INTERVAL_SECONDS", "0")
    code, _, err = await output(await start("heartbeats"))
    assert (code, err) == (2, "HEARTBEAT_INTERVAL_SECONDS is 0, so there are no heartbeats.\n")


@pytest.mark.parametrize("fields", ["[1]", "5", "{"])
def test_arguments_that_are_not_an_object_are_named(
    fields: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        console.main(["send", "lamp", "switch", fields])
    assert capsys.readouterr().err.endswith(f"must be a JSON object, not {fields}\n")


async def test_ctrl_c_while_it_connects_ends_it_without_a_traceback(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("MQTT_PORT", str(server.getsockname()[1]))
        process = await start("watch")
        connection, _ = await soon(asyncio.get_running_loop().sock_accept(server))
        with connection:
            process.send_signal(SIGINT)
            assert await output(process) == (130, "", "")


async def test_a_broker_that_stops_is_named_once(
    start: Start, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQTT_PORT", str(mosquitto.port))
    watching, sending = await start("watch"), await start("send", "nobody", "switch")
    for process in (watching, sending):
        assert process.stderr is not None
        assert b"Waiting" in await soon(process.stderr.readline())
    mosquitto.stop()
    code, _, err = await output(sending)
    assert (code, err) == (
        2,
        "The broker has closed the connection. Check it: make diagnose SERVICE=name\n",
    )
    assert watching.stderr is not None
    lost = await soon(watching.stderr.readline())
    assert lost == b"The broker has closed the connection. Waiting for it. Ctrl-C ends.\n"
    watching.send_signal(SIGINT)
    code, _, err = await output(watching)
    assert (code, err) == (0, "")


async def test_an_unreachable_broker_is_named(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQTT_PORT", "1")
    code, _, err = await output(await start("watch"))
    assert code == 2
    assert "127.0.0.1:1: " in err
    assert "make diagnose" in err
