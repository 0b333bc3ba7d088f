"""uvicorn as a part of the service, on its event loop, and the layer around all endpoints."""

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import override

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.stdlib import BoundLogger

from shared.tracing import bind_trace_id, new_trace_id

# Within the time that the service gives its run() to end.
GRACEFUL_STOP_SECONDS = 1
MAX_BODY_BYTES = 1_000_000


class RequestLayer:
    """Give each request a trace id, log it, limit its body and reply to unexpected errors.

    The log line is at INFO from status 400 on, otherwise at DEBUG.
    """

    def __init__(self, app: ASGIApp, logger: BoundLogger) -> None:
        self._app = app
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, trace_id = time.perf_counter(), new_trace_id()
        received_bytes = status = 0

        async def receive_limited() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES} bytes")
            return message

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-trace-id", trace_id.encode())]
            await send(message)

        with bind_trace_id(trace_id):
            try:
                await self._app(scope, receive_limited, send_traced)
            except Exception:
                self._logger.exception("request_failed")
                if not status:
                    body = {"detail": "internal error", "trace_id": trace_id}
                    await JSONResponse(body, 500)(scope, receive, send_traced)
            finally:
                self._logger.log(
                    logging.DEBUG if 0 < status < HTTPStatus.BAD_REQUEST else logging.INFO,
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    milliseconds=round(1000 * (time.perf_counter() - started), 1),
                )


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
