"""Fixtures of the tests of the shared library."""

import asyncio
import json
import logging
import re
import signal
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest
import structlog

from shared import diagnose
from shared.config import Settings
from shared.diagnose import Step
from shared.mqtt import MQTTClient
from shared.mqtt.session import Session
from tests import brokers
from tests.conftest import ROOT
from tests.library.probes import LogProbe


class Address(Protocol):
    host: str
    port: int


class Mosquitto(brokers.Mosquitto):
    """A Mosquitto that a test may kill and freeze.

    `persistent` keeps sessions and retained messages over a restart.
    """

    def __init__(
        self, program: str, folder: Path, *, persistent: bool = False, options: str = ""
    ) -> None:
        super().__init__(program, folder)
        text = self._configuration.read_text()
        if "allow_anonymous" in options:
            text = text.replace("allow_anonymous true\n", "")
        if persistent:
            text += "persistence true\nautosave_interval 1\nautosave_on_changes true\n"
        self._configuration.write_text(f"{text}persistence_location {folder}/\n{options}\n")

    def stop(self) -> None:
        self.resume()
        super().stop()

    def kill(self) -> None:
        """Kill it, so that it can neither save nor disconnect."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)


class MakeClient(Protocol):
    def __call__(self, broker: Address, service: str = ..., **options: Any) -> MQTTClient: ...


type Run = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture
def no_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A diagnosis is a program of its own, in which nobody has set up logging."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    was_configured, configuration = structlog.is_configured(), structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if was_configured:
        structlog.configure(**configuration)


@pytest.fixture
def run(
    no_logging: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run `python diagnose.py --json` with these variables. Return exit code and results."""

    def run(*arguments: str, steps: tuple[Step, ...] = (), **variables: str) -> Any:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code = diagnose.main(Settings, steps, ["--json", *arguments])
        results = json.loads(capsys.readouterr().out)
        return code, {result.pop("step"): result for result in results}

    return run


class ServeHTTP(Protocol):
    def __call__(self, status: int, body: str, tls: ssl.SSLContext | None = None) -> str: ...


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.crt`, and `mqtt.crt` of localhost, made by the commands of docs/containers.md."""
    text = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
    commands = re.search(r"^```bash\n(openssl req -x509 .*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert commands is not None
    script = commands[1].replace("broker.example.org", "localhost")
    directory = tmp_path_factory.mktemp("certificates")
    subprocess.run(["sh", "-ec", script], cwd=directory, check=True, capture_output=True)  # noqa: S603, S607
    return directory


@pytest.fixture
def server_tls(certificates: Path) -> ssl.SSLContext:
    """For a server on localhost, whose certificate is from an authority of its own."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "mqtt.crt", certificates / "mqtt.key")
    return context


@pytest.fixture
def serve_http() -> Iterator[ServeHTTP]:
    """Starts a server that answers everything alike, but always welcomes `/ping`."""
    servers: list[ThreadingHTTPServer] = []

    def serve(status: int, body: str, tls: ssl.SSLContext | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                is_ping = self.path == "/ping"
                self.send_response(204 if is_ping else status)
                self.send_header("Content-Length", str(0 if is_ping else len(body)))
                self.end_headers()
                if not is_ping:
                    self.wfile.write(body.encode())

            do_GET = do_POST = answer  # noqa: N815 - the names are the library's

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = "http://127.0.0.1" if tls is None else "https://localhost"
        return f"{origin}:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mosquitto: needs a real Mosquitto")
    config.addinivalue_line("markers", "home_assistant: uses a real Home Assistant")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `-m "not mosquitto"` select the tests that run with the embedded broker."""
    for item in items:
        if "make_mosquitto" in getattr(item, "fixturenames", ()):
            item.add_marker("mosquitto")


@pytest.fixture
def make_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Make real brokers that a test may stop, kill and freeze."""
    program = brokers.find_mosquitto()
    assert program is not None, 'install Mosquitto, or run with -m "not mosquitto"'
    made: list[Mosquitto] = []

    def make(**options: Any) -> Mosquitto:
        folder = tmp_path / f"mosquitto-{len(made)}"
        folder.mkdir()
        made.append(Mosquitto(program, folder, **options))
        return made[-1]

    yield make
    for mosquitto in made:
        mosquitto.stop()


@pytest.fixture
def mosquitto(make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """A real broker of the test's own, running."""
    broker = make_mosquitto()
    broker.start()
    return broker


@pytest.fixture
async def log(logger: structlog.stdlib.BoundLogger) -> AsyncIterator[LogProbe]:
    """Record the log of the test."""
    probe = LogProbe(asyncio.get_running_loop())
    logging.getLogger().addHandler(probe)
    yield probe
    logging.getLogger().removeHandler(probe)


@pytest.fixture
async def make_client(
    topic_prefix: str,
    logger: structlog.stdlib.BoundLogger,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> AsyncIterator[MakeClient]:
    """Makes clients of a broker, which come back quickly and are disconnected in the end.

    Each has a session that is kept, unless it gets another one.
    """
    monkeypatch.setattr("shared.mqtt.connection.random.uniform", lambda *_: 0.05)
    made: list[MQTTClient] = []
    sessions: list[Session] = []

    def make(broker: Address, service: str = "tested", **options: Any) -> MQTTClient:
        if "session" not in options:
            options["session"] = Session.claim(tmp_path / "sessions", service, logger)
            sessions.append(options["session"])
        defaults: dict[str, Any] = {"topic_prefix": topic_prefix, "logger": logger}
        options = {**defaults, **options}
        made.append(MQTTClient(broker.host, broker.port, service=service, **options))
        return made[-1]

    yield make
    for client in reversed(made):
        await client.disconnect()
    for session in sessions:
        session.close()


@pytest.fixture
def claim_session(
    tmp_path: Path, logger: structlog.stdlib.BoundLogger
) -> Iterator[Callable[[], Session]]:
    """Claims the session of one service, again and again, as its process does when it starts."""
    claimed: list[Session] = []

    def claim() -> Session:
        for session in claimed:
            session.close()
        claimed.append(Session.claim(tmp_path / "restarted", "restarted", logger))
        return claimed[-1]

    yield claim
    for session in claimed:
        session.close()
