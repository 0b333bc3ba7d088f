"""Commands from the coordinator: find the handler, run it once, reply to every request."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from structlog.stdlib import BoundLogger

from shared.mqtt.dedup import Recent, message_id
from shared.redaction import redact_text
from shared.schemas import Command, CommandReply, dump_message

type Result = Mapping[str, Any] | None
type CommandHandler = Callable[[Command], Awaitable[Result] | Result]
type Reply = dict[str, Any]
type SendReply = Callable[[Command, Reply], Awaitable[None]]

# Fields of a reply that a handler cannot set.
_RESERVED_FIELDS = {"command", "request_id", "status"}


class CommandRouter:
    """Runs the handler of each command and sends the reply."""

    def __init__(
        self, send_reply: SendReply, logger: BoundLogger, *, max_age_seconds: float = 0.0
    ) -> None:
        self._send_reply = send_reply
        self._max_age_seconds = max_age_seconds
        self._logger = logger
        self._handlers: dict[str, CommandHandler] = {}
        self._replies: Recent[Reply] = Recent()

    def register(self, name: str, handler: CommandHandler) -> None:
        if name in self._handlers:
            message = f"command {name!r} already has a handler"
            raise ValueError(message)
        self._handlers[name] = handler

    async def handle(self, _topic: str, command: Command) -> None:
        """Run the command and reply.

        An error is sent as the reply and then raised, so that the command becomes a dead letter.
        A command that is too old gets an error reply and is not run. A repeated command is not run
        again, unless it failed. With a `request_id` it gets the same reply again, because its
        sender has missed the first one.
        """
        content = repr(command.model_dump()).encode(errors="backslashreplace")
        sent_as = message_id(command.request_id, command.trace_id, content)
        key = (command.command, sent_as) if sent_as else None
        if key and (earlier := self._replies.get(key)) is not None:
            self._logger.info("command_repeated", command=command.command, message_id=sent_as)
            if command.request_id:
                await self._send_reply(command, earlier)
            return
        if self._max_age_seconds and (age := _age_seconds(command)) > self._max_age_seconds:
            self._logger.warning("command_too_late", command=command.command, age_seconds=age)
            await self._send_reply(command, _failure(command, f"too late: sent {age:.0f} s ago"))
            return
        try:
            reply = await self._run(command)
        except Exception as error:
            await self._send_reply(command, _failure(command, f"{type(error).__name__}: {error}"))
            raise
        if key:
            self._replies.add(key, reply)
        await self._send_reply(command, reply)

    async def _run(self, command: Command) -> Reply:
        handler = self._handlers.get(command.command)
        if handler is None:
            self._logger.warning("command_unknown", command=command.command)
            known = ", ".join(sorted(self._handlers)) or "none"
            return _failure(command, f"unknown command. Known commands: {known}")
        result = handler(command)
        if inspect.isawaitable(result):
            result = await result
        result = result or {}
        if overridden := result.keys() & _RESERVED_FIELDS:
            self._logger.warning(
                "command_result_overridden", command=command.command, fields=sorted(overridden)
            )
        reply = _reply(command, result, status="ok")
        self._logger.info("command_done", command=command.command)
        return reply


def _age_seconds(command: Command) -> float:
    if command.timestamp is None:
        return 0.0
    return round((datetime.now(UTC) - command.timestamp).total_seconds(), 1)


def _failure(command: Command, error: str) -> Reply:
    return _reply(command, {}, status="error", error=redact_text(error))


def _reply(command: Command, result: Mapping[str, Any], **outcome: str) -> Reply:
    """Return a CommandReply as JSON data. Raises ValueError for a result that is not JSON."""
    fields = {"request_id": command.request_id, "command": command.command, **outcome}
    reply = CommandReply.model_validate({**result, **fields})
    return dump_message(reply)
