"""uvicorn as a part of the service, on its event loop."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import override

import uvicorn
from fastapi import FastAPI

# Within the time that the service gives its run() to end.
GRACEFUL_STOP_SECONDS = 1


class EmbeddedServer(uvicorn.Server):
    """Serves until `should_exit` is set."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                # The service's own logging takes uvicorn's lines as well.
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACEFUL_STOP_SECONDS,
            )
        )
        self.listening = asyncio.Event()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit as error:
            # uvicorn would end the process without a word to the broker.
            message = f"cannot listen on {self.config.host}:{self.config.port}"
            raise OSError(message) from error
        self.listening.set()

    @property
    def port(self) -> int:
        """The port that was bound, once started."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the service, which stops this server as well."""
        yield
