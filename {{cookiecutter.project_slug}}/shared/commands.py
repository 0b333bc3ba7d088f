"""Commands from the coordinator: found by name, run once, always answered."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from structlog.stdlib import BoundLogger

from shared.dedup import RecentIds
from shared.redaction import redact_text
from shared.schemas import Command, CommandReply

type Result = Mapping[str, Any] | None
type CommandHandler = Callable[[Command], Awaitable[Result] | Result]
type Respond = Callable[[Command, CommandReply], Awaitable[None]]


class CommandRouter:
    """Hands each command to the handler of its name."""

    def __init__(self, respond: Respond, logger: BoundLogger) -> None:
        self._respond = respond
        self._logger = logger
        self._handlers: dict[str, CommandHandler] = {}
        self._recent = RecentIds()

    def register(self, name: str, handler: CommandHandler) -> None:
        if name in self._handlers:
            message = f"command {name!r} has a handler already"
            raise ValueError(message)
        self._handlers[name] = handler

    async def handle(self, _topic: str, command: Command) -> None:
        """Run the command and answer; an error is answered and then raised (dead letter)."""
        message_id = command.request_id or command.trace_id
        # With the name, because two commands of one trace may carry the same trace id.
        if message_id and self._recent.seen((command.command, message_id)):
            self._logger.info("command_repeated", command=command.command, message_id=message_id)
            return
        handler = self._handlers.get(command.command)
        if handler is None:
            self._logger.warning("command_unknown", command=command.command)
            known = ", ".join(sorted(self._handlers)) or "none"
            await self._fail(command, f"unknown command; known are: {known}")
            return
        try:
            result = handler(command)
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:
            await self._fail(command, f"{type(error).__name__}: {error}")
            raise
        self._logger.info("command_done", command=command.command)
        await self._respond(command, _reply(command, result or {}, status="ok"))

    async def _fail(self, command: Command, error: str) -> None:
        await self._respond(command, _reply(command, {}, status="error", error=redact_text(error)))


def _reply(command: Command, result: Mapping[str, Any], **outcome: Any) -> CommandReply:  # noqa: ANN401
    fields = {"request_id": command.request_id, "command": command.command, **outcome}
    return CommandReply.model_validate({**result, **fields})
