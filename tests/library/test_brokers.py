"""Brokers of a test run: none outlives it."""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from tests.brokers import HOST, EmbeddedBroker
from tests.conftest import ROOT
from tests.library.conftest import MakeClient
from tests.observer import PATIENCE_SECONDS, Observer, disconnect
from tests.probes import soon

WAITING = """
import signal


def test_waits(broker):
    print(f"\\nport={broker.port}", flush=True)
    signal.pause()
"""


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@pytest.mark.parametrize("kind", ["embedded", "mosquitto"])
def test_a_test_run_that_is_killed_leaves_no_broker_behind(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "test_waiting.py"
    file.write_text(WAITING)
    command: list[str | Path] = [
        *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
        *("--capture=no", "--rootdir", ROOT, "--config-file", ROOT / "pyproject.toml", file),
    ]
    env = {**os.environ, "TEST_BROKER": kind}
    with subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        port = next(int(line[5:]) for line in run.stdout if line.startswith("port="))
        assert is_listening(port)
        run.kill()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_listening(port):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupt_during_the_start_leaves_no_broker_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen

    def interrupted(command: list[str], **options: Any) -> Any:
        if command[0] == "/bin/sh":
            raise KeyboardInterrupt
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    broker = EmbeddedBroker(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        broker.start()
    assert broker._process is not None
    assert broker._process.poll() is not None


async def test_a_signal_ends_the_embedded_broker_while_a_client_is_connected(
    tmp_path: Path, make_client: MakeClient
) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.start()
    client = make_client(broker)
    client.connect_background()
    await soon(client.wait_connected())
    broker.stop()
    assert not is_listening(broker.port)


async def test_a_client_gets_no_retained_messages_for_subscriptions_of_another_client(
    tmp_path: Path, make_client: MakeClient
) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.start()
    try:
        client = make_client(broker, topic_prefix="one")
        client.connect_background()
        async with Observer(broker.host, broker.port, "one") as one:
            await one.next("tested/availability")  # retained
            async with Observer(broker.host, broker.port, "two") as two:
                two.publish("marker", {})
                await two.next("marker")
            assert two.seen == ["two/marker"]
        await client.disconnect()
    finally:
        broker.stop()


async def test_a_client_connects_again_while_another_one_subscribes(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.start()
    try:
        async with Observer(broker.host, broker.port, "one") as one:
            numbers = itertools.count()
            one._client.on_subscribe = lambda client, *_: client.subscribe(f"two/{next(numbers)}")
            one._client.subscribe("two")
            for number in range(20):
                kept = Client(CallbackAPIVersion.VERSION2, "kept", clean_session=False)
                connected = asyncio.Event()
                kept.on_subscribe = lambda *_, event=connected: one._call(event.set)
                kept.connect(broker.host, broker.port)
                kept.loop_start()
                kept.subscribe("kept/#")
                await soon(connected.wait())
                kept.publish(f"kept/{number}", "x", retain=True)
                await asyncio.to_thread(disconnect, kept)
    finally:
        broker.stop()
    assert "RuntimeError" not in broker.log.read_text()
