"""uvicorn as a part of the service, on its event loop, and what all endpoints have in common."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, override

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, field_validator
from starlette.exceptions import HTTPException as HTTPError
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.stdlib import BoundLogger

from shared.config import ConfigurationError
from shared.errors import is_cancellation
from shared.mqtt import CommandError, MQTTError, PayloadError, RequestTimeoutError, encode
from shared.schemas import Command
from shared.tracing import MAX_ID_LENGTH, bind_trace_id, current_trace_id, new_trace_id

# Within the time that the service gives its run() to end.
GRACEFUL_STOP_SECONDS = 1
MAX_BODY_BYTES = 1_000_000
# Fields of a command itself, and parameters of send_command().
_RESERVED = Command.model_fields.keys() | {"model", "timeout_seconds"}


class CommandRequest(BaseModel):
    """A command to another service."""

    command: str = Field(min_length=1, max_length=MAX_ID_LENGTH, examples=["refresh"])
    arguments: dict[str, Any] = Field(default_factory=dict, description="Further fields")

    @field_validator("arguments")
    @classmethod
    def _can_be_sent(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if reserved := arguments.keys() & _RESERVED:
            message = f"not allowed as arguments: {', '.join(sorted(reserved))}"
            raise ValueError(message)
        try:
            encode(arguments)
        except PayloadError as error:
            raise ValueError(str(error)) from error
        return arguments


class Problem(BaseModel):
    """Body of an error response."""

    detail: str
    trace_id: str


class RequestLayer:
    """Give each request a trace id, log it, limit its body and reply to unexpected errors.

    The log line is at INFO from status 400 on, otherwise at DEBUG. A WebSocket passes unchanged.
    """

    def __init__(self, app: ASGIApp, logger: BoundLogger) -> None:
        self._app = app
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
            except (Exception, asyncio.CancelledError) as error:
                # uvicorn cancels what is left at a stop, and would log a traceback for each.
                code, detail = 503, "the service stops"
                if not is_cancellation(error):
                    self._logger.exception("request_failed")
                    code, detail = 500, "internal error"
                if not status:
                    body = {"detail": detail, "trace_id": trace_id}
                    await JSONResponse(body, code)(scope, receive, send_traced)
            finally:
                self._logger.log(
                    logging.DEBUG if 0 < status < HTTPStatus.BAD_REQUEST else logging.INFO,
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    milliseconds=round(1000 * (time.perf_counter() - started), 1),
                )


def add_error_handlers(app: FastAPI) -> None:
    """Let every error response say what is wrong, with the trace id of its log lines."""
    app.exception_handler(RequestValidationError)(_reject)
    app.exception_handler(HTTPError)(_report)
    app.exception_handler(MQTTError)(_report_mqtt)


async def _reject(_request: Request, error: RequestValidationError) -> Response:
    """Say what is wrong with a request, without its input.

    FastAPI's own handler repeats the input, which may be text that JSON or UTF-8 cannot hold.
    """
    problems = [{key: found[key] for key in ("type", "loc", "msg")} for found in error.errors()]
    content = {"detail": problems, "trace_id": current_trace_id()}
    return Response(json.dumps(content), 422, media_type="application/json")


async def _report_mqtt(request: Request, error: MQTTError) -> Response:
    """Report why a command has no result, for every endpoint that sends one."""
    status = 503
    if isinstance(error, RequestTimeoutError):
        status = 504
    elif isinstance(error, CommandError | PayloadError):
        status = 502
    return await _report(request, HTTPError(status, str(error)))


async def _report(_request: Request, error: HTTPError) -> Response:
    """Add the trace id to an error, so that its log lines can be found."""
    content = {"detail": error.detail, "trace_id": current_trace_id()}
    return JSONResponse(content, error.status_code, headers=error.headers)


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
            variable = "{{ cookiecutter.__env }}_HTTP_PORT"
            problem = f"{variable}: cannot listen on {host}:{port}: {error.strerror}"
            raise ConfigurationError([problem]) from error

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
