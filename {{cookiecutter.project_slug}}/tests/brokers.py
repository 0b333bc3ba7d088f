"""Brokers for the tests and `make run`: Mosquitto where it is installed, an embedded one otherwise.

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
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

START_TIMEOUT_SECONDS = 20.0
HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent


class BrokerError(Exception):
    """A broker did not start. The message has the end of its log."""


class Broker(Protocol):
    """Interface of the test brokers. Each listens on one port of the loopback interface."""

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


def listens(host: str, port: int) -> bool:
    """Return whether something accepts connections."""
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


class _Process:
    """A broker in a process of its own, on a free port by default. Its log is `broker.log`."""

    host = HOST

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.log = directory / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        """Start the broker, and wait until it listens. Raises BrokerError."""
        command = self.command()
        with self.log.open("wb") as log:
            # In a session of its own, so that Ctrl-C does not end it before its clients.
            self._process = subprocess.Popen(  # noqa: S603
                command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
        # The end of this process closes the pipe, even if it is killed. The broker must not stay.
        try:
            self._guard = subprocess.Popen(  # noqa: S603
                ["/bin/sh", "-c", 'read -r _; kill -9 "$1"', "sh", str(self._process.pid)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not listens(HOST, self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                log_end = self.log.read_text(errors="replace")[-500:]
                message = f"{command[0]} did not start: {log_end}"
                raise BrokerError(message)
            time.sleep(0.02)

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

    def __init__(self, program: str, directory: Path, port: int | None = None) -> None:
        super().__init__(directory, port)
        self._program = program
        self._configuration = directory / "broker.conf"
        self._configuration.write_text(
            f"listener {self.port} {HOST}\n"
            "allow_anonymous true\n"
            "set_tcp_nodelay true\n"
            "max_queued_messages 0\n"
            # Mosquitto, started as root, would otherwise become a user that cannot write to this
            # directory.
            "user root\n"
        )

    def command(self) -> list[str]:
        return [self._program, "-c", str(self._configuration)]


class EmbeddedBroker(_Process):
    """amqtt, which keeps nothing over a restart."""

    kind = "embedded"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.brokers", str(self.port)]


def make_broker(directory: Path, port: int | None = None) -> Mosquitto | EmbeddedBroker:
    """Return a broker that is not started yet, with its files in a directory."""
    program = find_mosquitto()
    return Mosquitto(program, directory, port) if program else EmbeddedBroker(directory, port)


async def serve_embedded(port: int) -> None:
    from amqtt.broker import Broker as AmqttBroker  # noqa: PLC0415
    from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType  # noqa: PLC0415

    class FixedBroker(AmqttBroker):  # type: ignore[misc]
        """amqtt, with three of its faults corrected."""

        async def _publish_retained_messages_for_subscription(
            self, subscription: tuple[str, int], session: Any
        ) -> None:
            """Only for its own subscriptions. amqtt takes those of all clients on a connect.

            It must not wait: amqtt iterates over all subscriptions, and a client may add one.
            """
            if any(subscriber is session for subscriber, _ in self._subscriptions[subscription[0]]):
                publish = super()._publish_retained_messages_for_subscription
                self._tasks_queue.append(asyncio.create_task(publish(subscription, session)))

        async def _handle_message_delivery(self, session: Any, handler: Any, message: Any) -> Any:
            """Deliver messages that came before a DISCONNECT. amqtt forgets those in its queue."""
            goes_on = await super()._handle_message_delivery(session, handler, message)
            queue = session.delivered_message_queue
            while goes_on and handler._disconnect_waiter is None and not queue.empty():
                message = asyncio.get_running_loop().create_future()
                message.set_result(queue.get_nowait())
                goes_on = await super()._handle_message_delivery(session, handler, message)
            return goes_on

    listener = ListenerConfig(type=ListenerType.TCP, bind=f"{HOST}:{port}")
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = FixedBroker(BrokerConfig(listeners={"default": listener}, plugins=plugins))
    await broker.start()
    # A signal ends it as it is, because it keeps nothing.
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve_embedded(int(sys.argv[1])))
