"""Commands from the coordinator: find the handler, run it once, reply to every request."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ValidationError
from structlog.stdlib import BoundLogger

from shared.errors import is_cancellation
from shared.mqtt.dedup import Recent, message_id
from shared.mqtt.errors import CommandError
from shared.redaction import redact_text
from shared.schemas import Command, CommandReply, describe_problems, dump_message
from shared.tracing import MAX_ID_LENGTH

type Result = Mapping[str, Any] | BaseModel | None
type CommandHandler[A] = Callable[[A], Awaitable[Result] | Result]
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
        self._handlers: dict[str, tuple[CommandHandler[Any], type[BaseModel]]] = {}
        self._replies: Recent[Reply] = Recent()

    def register(
        self, name: str, handler: CommandHandler[Any], model: type[BaseModel] = Command
    ) -> None:
        if name in self._handlers:
            message = f"command {name!r} already has a handler"
            raise ValueError(message)
        required = {key for key, field in model.model_fields.items() if field.is_required()}
        taken = required & Command.model_fields.keys()
        if taken and not issubclass(model, Command):
            message = f"command {name!r}: {', '.join(sorted(taken))} cannot be an argument"
            raise ValueError(message)
        self._handlers[name] = handler, model

{% if cookiecutter.include_home_assistant %}
    @property
    def arguments(self) -> dict[str, type[BaseModel]]:
        """Model of the arguments of each command."""
        return {name: model for name, (_, model) in self._handlers.items()}

{% endif %}
    async def handle(self, _topic: str, payload: Any) -> None:  # noqa: ANN401 - any JSON
        """Run the command and reply.

        A payload that is not a valid command gets an error reply if it has a `reply_to`. An error
        is sent as the reply and then raised, so that the command becomes a dead letter.
        A command that is too old, or whose sender no longer waits, gets an error reply and is not
        run. A repeated command is not run again, unless it failed. With a `request_id` it gets the
        same reply again, because its sender has missed the first one.
        """
        if payload is None:
            # An empty payload clears a retained command.
            return
        try:
            command = Command.model_validate(payload)
        except ValidationError as error:
            await self._reply_to_invalid(payload, describe_problems(error))
            raise
        content = repr(command.model_dump()).encode(errors="backslashreplace")
        sent_id = command.replay_id or command.request_id
        sent_as = message_id(sent_id, command.trace_id, content)
        key = (command.command, sent_as) if sent_as else None
        if key and (earlier := self._replies.get(key)) is not None:
            self._logger.info("command_repeated", command=command.command, message_id=sent_as)
            if command.request_id:
                await self._send_reply(command, earlier)
            return
        if lateness := self._lateness(command):
            self._logger.warning("command_too_late", command=command.command, reason=lateness)
            await self._send_reply(command, _failure(command, f"too late: {lateness}"))
            return
        try:
            reply = await self._run(command)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancellation(error):
                raise
            problem = f"{type(error).__name__}: {error}".removesuffix(": ")
            await self._send_reply(command, _failure(command, problem))
            if isinstance(error, OSError):
                # The dispatcher would retry it, but its sender knows already that it has failed.
                message = f"{command.command}: {type(error).__name__}: {error}"
                raise CommandError(message) from error
            raise
        if key:
            self._replies.add(key, reply)
        await self._send_reply(command, reply)

    async def _reply_to_invalid(self, payload: object, problems: str) -> None:
        fields = payload if isinstance(payload, dict) else {}
        known = {name: fields.get(name) for name in ("command", "request_id", "reply_to")}
        short = {
            name: value[:MAX_ID_LENGTH] if name != "reply_to" else value
            for name, value in known.items()
            if isinstance(value, str)
        }
        if "reply_to" in short:
            command = Command.model_validate({"command": "", **short})
            await self._send_reply(command, _failure(command, f"not a valid command: {problems}"))

    def _lateness(self, command: Command) -> str:
        """Return why a command must not be run any more, or an empty string."""
        age, overdue = _seconds_since(command.timestamp), _seconds_since(command.expires_at)
        if overdue > 0:
            return f"expired {round(overdue, 1)} s ago"
        return f"sent {age:.0f} s ago" if 0 < self._max_age_seconds < age else ""

    async def _run(self, command: Command) -> Reply:
        if command.command not in self._handlers:
            self._logger.warning("command_unknown", command=command.command)
            known = ", ".join(sorted(self._handlers)) or "none"
            return _failure(command, f"unknown command. Known commands: {known}")
        handler, model = self._handlers[command.command]
        try:
            arguments = _arguments(command, model)
        except ValidationError as error:
            problems = describe_problems(error)
            self._logger.warning("command_rejected", command=command.command, error=problems)
            return _failure(command, f"the arguments are not valid: {problems}")
        result = handler(arguments)
        if inspect.isawaitable(result):
            result = await result
        result = dump_message(result) if isinstance(result, BaseModel) else result or {}
        if overridden := result.keys() & _RESERVED_FIELDS:
            self._logger.warning(
                "command_result_overridden", command=command.command, fields=sorted(overridden)
            )
        reply = _reply(command, result, status="ok")
        self._logger.info("command_done", command=command.command)
        return reply


def _seconds_since(time: datetime | None) -> float:
    return 0.0 if time is None else round((datetime.now(UTC) - time).total_seconds(), 1)


def _arguments(command: Command, model: type[BaseModel]) -> BaseModel:
    if model is Command:
        return command
    is_command = issubclass(model, Command)
    return model.model_validate(command.model_dump() if is_command else command.model_extra)


def _failure(command: Command, error: str) -> Reply:
    return _reply(command, {}, status="error", error=redact_text(error))


def _reply(command: Command, result: Mapping[str, Any], **outcome: str) -> Reply:
    """Return a CommandReply as JSON data. Raises ValueError for a result that is not JSON."""
    fields = {"request_id": command.request_id, "command": command.command, **outcome}
    reply = CommandReply.model_validate({**result, **fields})
    return dump_message(reply)
