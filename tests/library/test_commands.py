import asyncio
import errno
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from pydantic import BaseModel, ValidationError

from shared.commands import CommandRouter
from shared.mqtt import CommandError
from shared.mqtt.dedup import Recent
from shared.schemas import Command, CommandReply, Message


@pytest.fixture
def replies() -> list[CommandReply]:
    return []


@pytest.fixture
def router(replies: list[CommandReply]) -> CommandRouter:
    async def respond(_command: Command, answer: dict[str, Any]) -> None:
        replies.append(CommandReply.model_validate(answer))

    return CommandRouter(respond, structlog.stdlib.get_logger())


async def send(router: CommandRouter, **fields: str) -> None:
    await router.handle("a/topic", Command.model_validate(fields))


async def test_handlers_are_found_by_name_and_their_result_is_the_answer(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    async def refresh(command: Command) -> dict[str, Any]:
        return {"room": (command.model_extra or {})["room"]}

    router.register("refresh", refresh)
    router.register("reset", lambda _command: None)
    await send(router, command="refresh", request_id="1", room="hall")
    await send(router, command="reset", request_id="2")
    assert [reply.model_dump(exclude_none=True) for reply in replies] == [
        {"command": "refresh", "status": "ok", "request_id": "1", "room": "hall"},
        {"command": "reset", "status": "ok", "request_id": "2"},
    ]


async def test_a_result_cannot_pretend_to_be_another_answer(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    router.register("refresh", lambda _command: {"status": "error", "request_id": "other"})
    with structlog.testing.capture_logs() as lines:
        await send(router, command="refresh", request_id="1")
    assert (replies[0].status, replies[0].request_id) == ("ok", "1")
    assert (lines[0]["event"], lines[0]["fields"]) == (
        "command_result_overridden",
        ["request_id", "status"],
    )


async def test_nothing_is_a_result_as_well(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    router.register("refresh", lambda _command: {"highest": None})
    await send(router, command="refresh", request_id="1")
    assert replies[0].model_extra == {"highest": None}


async def test_an_unknown_command_is_logged_and_answered(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    router.register("refresh", lambda _command: None)
    with structlog.testing.capture_logs() as lines:
        await send(router, command="explode", request_id="1")
    assert [line["event"] for line in lines] == ["command_unknown"]
    assert replies[0].status == "error"
    assert replies[0].error == "unknown command. Known commands: refresh"


async def test_a_failing_handler_is_answered_and_its_error_raised(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    def refresh(_command: Command) -> None:
        raise LookupError("no route to http://user:hunter2@host")

    router.register("refresh", refresh)
    with pytest.raises(LookupError):
        await send(router, command="refresh", request_id="1")
    assert replies[0].status == "error"
    assert replies[0].error == "LookupError: no route to http://[redacted]@host"


async def test_a_result_that_is_no_json_is_answered_and_raised(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    router.register("refresh", lambda _command: {"value": object()})
    with pytest.raises(ValueError, match="serialize"):
        await send(router, command="refresh", request_id="1")
    assert replies[0].status == "error"


@pytest.fixture
def handled(router: CommandRouter) -> list[str]:
    """The commands that were run: `refresh` counts them, `reset` does too."""
    handled = []

    def handle(command: Command) -> dict[str, Any]:
        handled.append(command.command)
        return {"count": len(handled)}

    router.register("refresh", handle)
    router.register("reset", handle)
    return handled


async def test_a_repeated_request_is_handled_once_and_answered_again(
    router: CommandRouter, replies: list[CommandReply], handled: list[str]
) -> None:
    await send(router, command="refresh", request_id="1", trace_id="t")
    await send(router, command="refresh", request_id="2", trace_id="t")
    await send(router, command="refresh", request_id="1", trace_id="other")
    assert handled == ["refresh"] * 2
    assert [(reply.request_id, reply.model_extra) for reply in replies] == [
        ("1", {"count": 1}),
        ("2", {"count": 2}),
        ("1", {"count": 1}),
    ]


async def test_a_replayed_command_is_run_once_more(
    router: CommandRouter, handled: list[str]
) -> None:
    await send(router, command="refresh", request_id="1")
    for replay_id in ("a", "a", "b"):
        await send(router, command="refresh", request_id="1", replay_id=replay_id)
    assert handled == ["refresh"] * 3


async def test_a_command_that_failed_is_tried_again_when_it_is_repeated(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    calls = []

    def refresh(_command: Command) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("broken")

    router.register("refresh", refresh)
    with pytest.raises(LookupError):
        await send(router, command="refresh", request_id="1")
    await send(router, command="refresh", request_id="1")
    await send(router, command="refresh", request_id="1")
    assert [reply.status for reply in replies] == ["error", "ok", "ok"]
    assert len(calls) == 2


async def test_without_a_request_id_a_repeated_trace_is_skipped(
    router: CommandRouter, replies: list[CommandReply], handled: list[str]
) -> None:
    await send(router, command="refresh", trace_id="t")
    await send(router, command="refresh", trace_id="t")
    await send(router, command="refresh", trace_id="t", room="hall")
    await send(router, command="reset", trace_id="t")
    await send(router, command="reset")
    await send(router, command="reset")
    assert handled == ["refresh"] * 2 + ["reset"] * 3
    assert len(replies) == 5


async def test_what_is_remembered_is_bounded(
    router: CommandRouter, handled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_replies", Recent(max_count=1))
    for request_id in ("1", "2", "2", "1"):
        await send(router, command="refresh", request_id=request_id)
    assert len(handled) == 3


async def test_a_command_that_comes_too_late_is_answered_and_not_run(
    replies: list[CommandReply],
) -> None:
    async def respond(_command: Command, answer: dict[str, Any]) -> None:
        replies.append(CommandReply.model_validate(answer))

    router = CommandRouter(respond, structlog.stdlib.get_logger(), max_age_seconds=60)
    router.register("refresh", lambda _command: None)
    now = datetime.now(UTC)
    for age_seconds in (7000, 30, -3600):
        sent = now - timedelta(seconds=age_seconds)
        await send(router, command="refresh", timestamp=sent.isoformat())
    await send(router, command="refresh")
    assert [reply.status for reply in replies] == ["error", "ok", "ok", "ok"]
    assert re.fullmatch(r"too late: sent 70\d\d s ago.*", replies[0].error or "")


async def test_an_expired_command_names_the_time_since_then(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    router.register("refresh", lambda _command: None)
    expired = datetime.now(UTC) - timedelta(seconds=7000)
    await send(router, command="refresh", expires_at=expired.isoformat())
    assert (replies[0].error or "").startswith("too late: expired 70")


async def test_a_cancelled_future_in_a_handler_is_answered_and_its_error_raised(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    async def refresh(_command: Command) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    router.register("refresh", refresh)
    with pytest.raises(asyncio.CancelledError):
        await send(router, command="refresh", request_id="1")
    assert [(reply.status, reply.error) for reply in replies] == [("error", "CancelledError")]


async def test_a_handler_that_is_cancelled_at_the_stop_sends_nothing(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    started = asyncio.Event()

    async def refresh(_command: Command) -> None:
        started.set()
        await asyncio.Event().wait()

    router.register("refresh", refresh)
    handling = asyncio.create_task(send(router, command="refresh", request_id="1"))
    await started.wait()
    handling.cancel()
    await asyncio.wait({handling})
    assert handling.cancelled()
    assert replies == []


async def test_a_command_that_utf8_cannot_hold_is_answered(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    router.register("refresh", lambda _command: None)
    await send(router, command="refresh", trace_id="t", room="\ud800")
    assert [reply.status for reply in replies] == ["ok"]


@pytest.mark.parametrize(
    ("payload", "answered"),
    [
        ({"command": 5, "reply_to": "a/reply", "request_id": "1"}, ("", "1")),
        ({"reply_to": "a/reply"}, ("", None)),
        ({"command": "refresh", "request_id": 7, "reply_to": "a/reply"}, ("refresh", None)),
        ({"command": "x" * 300, "request_id": "1", "reply_to": "a/reply"}, ("x" * 200, "1")),
        ({"command": "refresh", "reply_to": 5}, None),
        ({"command": 5}, None),
        ([1], None),
    ],
)
async def test_a_command_whose_fields_do_not_fit_is_answered_if_it_says_where(
    router: CommandRouter, replies: list[CommandReply], payload: Any, answered: Any
) -> None:
    router.register("refresh", lambda _command: None)
    with pytest.raises(ValidationError):
        await router.handle("a/topic", payload)
    assert [(reply.command, reply.request_id) for reply in replies] == [answered] * bool(answered)
    assert all((reply.error or "").startswith("not a valid command: ") for reply in replies)


async def test_a_retained_command_that_is_cleared_is_no_command(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    await router.handle("a/topic", None)
    assert replies == []


async def test_a_command_that_meets_a_full_disk_is_not_run_after_its_error_reply(
    router: CommandRouter, replies: list[CommandReply]
) -> None:
    def fail(_command: Command) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    router.register("save", fail)
    # An OSError would make the dispatcher retry it.
    with pytest.raises(CommandError, match="save: OSError"):
        await send(router, command="save")
    assert [reply.status for reply in replies] == ["error"]


def test_a_command_has_one_handler(router: CommandRouter) -> None:
    router.register("refresh", lambda _command: None)
    with pytest.raises(ValueError, match="'refresh' already has a handler"):
        router.register("refresh", lambda _command: None)


def test_an_argument_that_cannot_arrive_is_rejected(router: CommandRouter) -> None:
    class Restart(BaseModel):
        service: str

    class Feed(Message):
        grams: float

    with pytest.raises(ValueError, match="command 'restart': service cannot be an argument"):
        router.register("restart", lambda _arguments: None, Restart)
    router.register("feed", lambda _arguments: None, Feed)
