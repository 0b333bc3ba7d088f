"""Commands from the coordinator: found by name, run once, answered as often as asked."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from structlog.stdlib import BoundLogger

from shared.dedup import Recent, message_id
from shared.redaction import redact_text
from shared.schemas import Command, CommandReply, dump_message

type Result = Mapping[str, Any] | None
type CommandHandler = Callable[[Command], Awaitable[Result] | Result]
type Answer = dict[str, Any]
type Respond = Callable[[Command, Answer], Awaitable[None]]


# What the library says of a command, whatever its handler returns.
_OUTCOME = {"command", "request_id", "status"}


class CommandRouter:
    """Hands each command to the handler of its name."""

    def __init__(
        self, respond: Respond, logger: BoundLogger, *, max_age_seconds: float = 0.0
    ) -> None:
        self._respond = respond
        self._max_age_seconds = max_age_seconds
        self._logger = logger
        self._handlers: dict[str, CommandHandler] = {}
        self._answers: Recent[Answer] = Recent()

    def register(self, name: str, handler: CommandHandler) -> None:
        if name in self._handlers:
            message = f"command {name!r} has a handler already"
            raise ValueError(message)
        self._handlers[name] = handler

    async def handle(self, _topic: str, command: Command) -> None:
        """Run the command and answer; an error is answered and then raised (dead letter).

        One that comes too late, from a broker that has kept it for long, is only answered. A
        repeated one is not run again, unless it failed. With a `request_id` somebody waits, who
        has missed the first answer, and gets it once more.
        """
        content = repr(command.model_dump()).encode(errors="backslashreplace")
        sent_as = message_id(command.request_id, command.trace_id, content)
        key = (command.command, sent_as) if sent_as else None
        if key and (earlier := self._answers.get(key)) is not None:
            self._logger.info("command_repeated", command=command.command, message_id=sent_as)
            if command.request_id:
                await self._respond(command, earlier)
            return
        if self._max_age_seconds and (age := _age_seconds(command)) > self._max_age_seconds:
            self._logger.warning("command_too_late", command=command.command, age_seconds=age)
            await self._respond(command, _failure(command, f"too late: sent {age:.0f} s ago"))
            return
        try:
            answer = await self._run(command)
        except Exception as error:
            await self._respond(command, _failure(command, f"{type(error).__name__}: {error}"))
            raise
        if key:
            self._answers.add(key, answer)
        await self._respond(command, answer)

    async def _run(self, command: Command) -> Answer:
        handler = self._handlers.get(command.command)
        if handler is None:
            self._logger.warning("command_unknown", command=command.command)
            known = ", ".join(sorted(self._handlers)) or "none"
            return _failure(command, f"unknown command; known are: {known}")
        result = handler(command)
        if inspect.isawaitable(result):
            result = await result
        result = result or {}
        if overridden := result.keys() & _OUTCOME:
            self._logger.warning(
                "command_result_overridden", command=command.command, fields=sorted(overridden)
            )
        answer = _reply(command, result, status="ok")
        self._logger.info("command_done", command=command.command)
        return answer


def _age_seconds(command: Command) -> float:
    if command.timestamp is None:
        return 0.0
    return round((datetime.now(UTC) - command.timestamp).total_seconds(), 1)


def _failure(command: Command, error: str) -> Answer:
    return _reply(command, {}, status="error", error=redact_text(error))


def _reply(command: Command, result: Mapping[str, Any], **outcome: str) -> Answer:
    """A CommandReply as JSON data; raises ValueError for a result that cannot be written so."""
    fields = {"request_id": command.request_id, "command": command.command, **outcome}
    reply = CommandReply.model_validate({**result, **fields})
    return dump_message(reply)
