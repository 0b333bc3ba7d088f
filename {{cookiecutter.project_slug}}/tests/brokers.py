"""Brokers for the tests: a real Mosquitto where there is one, else an embedded one.

`python -m tests.brokers PORT` runs the embedded broker until it is interrupted.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

from amqtt.broker import Broker as AmqttBroker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType

START_TIMEOUT_SECONDS = 20.0
HOST = "127.0.0.1"


class Broker(Protocol):
    """What the tests need of a broker; each listens on a free port of the loopback interface."""

    kind: str
    host: str
    port: int

    def start(self) -> None: ...
    def stop(self) -> None: ...


def find_mosquitto() -> str | None:
    """The Mosquitto that is on PATH or where Debian puts it; None with TEST_BROKER=embedded."""
    if os.environ.get("TEST_BROKER") == "embedded":
        return None
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_listening(port: int) -> None:
    """Return when something listens; raises TimeoutError."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.02)
    message = f"no broker on port {port} after {START_TIMEOUT_SECONDS} s"
    raise TimeoutError(message)


class Mosquitto:
    """A Mosquitto process with a configuration of its own.

    `persistent` keeps sessions and retained messages over a restart.
    """

    kind = "mosquitto"
    host = HOST

    def __init__(
        self, program: str, folder: Path, *, persistent: bool = False, options: str = ""
    ) -> None:
        self.port = free_port()
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        persistence = "persistence true\nautosave_interval 1\nautosave_on_changes true\n"
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} {HOST}\n"
            f"{'' if 'allow_anonymous' in options else 'allow_anonymous true'}\n"
            "set_tcp_nodelay true\n"
            "max_queued_messages 0\n"
            # Else it would, started as root, become a user that cannot write to the test's folder.
            "user root\n"
            f"persistence_location {folder}/\n"
            f"{persistence if persistent else ''}{options}\n"
        )

    def start(self) -> None:
        log = (self._folder / "mosquitto.log").open("ab")
        command = [self._program, "-c", str(self._folder / "mosquitto.conf")]
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)  # noqa: S603
        wait_until_listening(self.port)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a chance to save or to say goodbye."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def log(self) -> str:
        return (self._folder / "mosquitto.log").read_text(errors="replace")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(number)
        self._signal(signal.SIGCONT)
        self._process.wait(timeout=10)
        self._process = None


class EmbeddedBroker:
    """amqtt in a thread with a loop of its own."""

    kind = "embedded"
    host = HOST

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=asyncio.run, args=[self.serve()], daemon=True)
        self._thread.start()
        wait_until_listening(self.port)

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None

    async def serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listener = ListenerConfig(type=ListenerType.TCP, bind=f"{HOST}:{self.port}")
        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        broker = AmqttBroker(BrokerConfig(listeners={"default": listener}, plugins=plugins))
        await broker.start()
        try:
            await self._stop.wait()
        finally:
            await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(EmbeddedBroker(int(sys.argv[1])).serve())
