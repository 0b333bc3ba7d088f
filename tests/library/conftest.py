"""Fixtures of the tests of the shared library."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import structlog

from shared import diagnose
from shared.config import Settings
from shared.diagnose import Step

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
    """Runs `python diagnose.py --json` with these variables; gives exit code and results."""

    def run(*arguments: str, steps: tuple[Step, ...] = (), **variables: str) -> Any:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code = diagnose.main(Settings, steps, ["--json", *arguments])
        results = json.loads(capsys.readouterr().out)
        return code, {result.pop("step"): result for result in results}

    return run


@pytest.fixture
def serve_http() -> Iterator[Callable[[int, str], str]]:
    """Starts a server that answers everything alike, but always welcomes `/ping`."""
    servers: list[ThreadingHTTPServer] = []

    def serve(status: int, body: str) -> str:
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
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
