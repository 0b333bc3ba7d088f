"""uvicorn as a part of the service, on its event loop."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import override

import uvicorn
from fastapi import FastAPI

from shared.config import ConfigurationError

# Within the time that the service gives its run() to end.
GRACEFUL_STOP_SECONDS = 1


class EmbeddedServer(uvicorn.Server):
    """Serves until `should_exit` is set."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        """Listen on the address. Raises ConfigurationError if that is not possible."""
        super().__init__(
            uvicorn.Config(
                app,
                # The service's own logging takes uvicorn's lines as well.
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACEFUL_STOP_SECONDS,
            )
        )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self.listener = socket.create_server((host, port), family=family)
        except OSError as error:
            problem = f"cannot listen on {host}:{port}: {error.strerror}"
            raise ConfigurationError(["{{ cookiecutter.__env }}_HTTP_PORT: " + problem]) from error

    @property
    def port(self) -> int:
        """The port that was bound."""
        port: int = self.listener.getsockname()[1]
        return port

    @override
    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets or [self.listener])

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service, which stops this server as well."""
        yield
