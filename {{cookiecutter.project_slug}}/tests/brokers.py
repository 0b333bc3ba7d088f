"""Brokers for the tests: a real Mosquitto where there is one, else an embedded one.

`TEST_BROKER=embedded` forces the embedded broker, and tests that need the real one are skipped.
`python -m tests.brokers PORT` runs the embedded broker until it is interrupted.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

START_TIMEOUT_SECONDS = 20.0
HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent


class Broker(Protocol):
    """Interface of the test brokers. Each listens on a free port of the loopback interface."""

    kind: str
    host: str
    port: int

    def start(self) -> None: ...
    def stop(self) -> None: ...


def find_mosquitto() -> str | None:
    """Find Mosquitto on PATH or where Debian installs it. Return None for TEST_BROKER=embedded."""
    if os.environ.get("TEST_BROKER") == "embedded":
        return None
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_listening(port: int) -> None:
    """Wait until the port accepts connections.

    Raises:
        TimeoutError: Nothing listens in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.02)
    message = f"no broker on port {port} after {START_TIMEOUT_SECONDS} s"
    raise TimeoutError(message)


class _Process:
    """A broker in a process of its own."""

    host = HOST

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log, cwd=ROOT)  # noqa: S603
        # The end of this process closes the pipe, even if it is killed. The broker must not stay.
        self._guard = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", 'read -r _; kill -9 "$1"', "sh", str(self._process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        wait_until_listening(self.port)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or self._guard is None:
            return
        self._process.send_signal(number)
        self._process.wait(timeout=10)
        self._guard.kill()
        self._guard.communicate()
        self._process = self._guard = None


class Mosquitto(_Process):
    """A Mosquitto with a configuration of its own. It keeps nothing over a restart."""

    kind = "mosquitto"

    def __init__(self, program: str, folder: Path) -> None:
        super().__init__(folder / "mosquitto.log")
        self._program = program
        self._configuration = folder / "mosquitto.conf"
        self._configuration.write_text(
            f"listener {self.port} {HOST}\n"
            "allow_anonymous true\n"
            "set_tcp_nodelay true\n"
            "max_queued_messages 0\n"
            # Mosquitto, started as root, would otherwise become a user that cannot write to this
            # directory.
            "user root\n"
        )

    def _command(self) -> list[str]:
        return [self._program, "-c", str(self._configuration)]


class EmbeddedBroker(_Process):
    """amqtt, which keeps nothing over a restart."""

    kind = "embedded"

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "tests.brokers", str(self.port)]


async def serve_embedded(port: int) -> None:
    from amqtt.broker import Broker as AmqttBroker  # noqa: PLC0415
    from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType  # noqa: PLC0415

    class PatientBroker(AmqttBroker):  # type: ignore[misc]
        """Delivers messages that came before a DISCONNECT. amqtt forgets those in its queue."""

        async def _handle_message_delivery(self, session: Any, handler: Any, message: Any) -> Any:
            goes_on = await super()._handle_message_delivery(session, handler, message)
            queue = session.delivered_message_queue
            while goes_on and handler._disconnect_waiter is None and not queue.empty():
                message = asyncio.get_running_loop().create_future()
                message.set_result(queue.get_nowait())
                goes_on = await super()._handle_message_delivery(session, handler, message)
            return goes_on

    listener = ListenerConfig(type=ListenerType.TCP, bind=f"{HOST}:{port}")
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = PatientBroker(BrokerConfig(listeners={"default": listener}, plugins=plugins))
    await broker.start()
    # A signal ends it as it is, because it keeps nothing.
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve_embedded(int(sys.argv[1])))
