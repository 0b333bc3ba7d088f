"""The dispatcher without a broker, for cases that are too slow or too large otherwise."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from shared.mqtt.connection import ReceivedMessage
from shared.mqtt.dedup import RecentIds
from shared.mqtt.dispatcher import (
    MAX_QUEUED_BYTES,
    MESSAGE_BYTES,
    Dispatcher,
    Handler,
    Subscription,
)
from shared.mqtt.journal import Journal
from shared.schemas import Command
from tests.library.probes import LogProbe, Recorder
from tests.probes import soon, until


class Harness:
    """A dispatcher whose network thread is the test."""

    def __init__(self, logger: structlog.stdlib.BoundLogger) -> None:
        self.acknowledged: list[int] = []
        self.reconnected: list[int] = []
        self.scheduled = 0
        self.sends_dead_letters = True
        self.dispatcher = Dispatcher(
            max_payload_bytes=2**26,
            schedule=self._schedule,
            acknowledge=lambda message: self.acknowledged.append(message.mid),
            reconnect=self.reconnected.append,
            send_dead_letter=self._send_dead_letter,
            urgent_topics=frozenset({"urgent"}),
            logger=logger,
        )

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        self.dispatcher.add(Subscription(topic_filter, handler, qos=1, payload_format="bytes"))

    def subscribe_held(self, topic_filter: str, recorder: Recorder) -> asyncio.Event:
        """The recorder gets nothing before the event is set."""
        release = asyncio.Event()

        async def wait(topic: str, payload: Any) -> None:
            await release.wait()
            recorder(topic, payload)

        self.subscribe(topic_filter, wait)
        return release

    def put(self, payload: bytes, *, mid: int = 0, connection_id: int = 1, **fields: Any) -> None:
        message = ReceivedMessage(
            "t",
            payload,
            qos=1 if mid else 0,
            retain=False,
            duplicate=False,
            mid=mid,
            connection_id=connection_id,
        )
        self.dispatcher.put(message._replace(**fields))

    def _schedule(self, function: Callable[[], None]) -> None:
        self.scheduled += 1
        asyncio.get_running_loop().call_soon(function)

    async def _send_dead_letter(
        self, _message: ReceivedMessage, _error: BaseException, _trace_id: str
    ) -> bool:
        return self.sends_dead_letters


def fail(_topic: str, _payload: Any) -> None:
    raise LookupError


@pytest.fixture
def harness(logger: structlog.stdlib.BoundLogger) -> Harness:
    return Harness(logger)


@pytest.fixture
def room_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher.MAX_QUEUED_BYTES", 3 * MESSAGE_BYTES + 50)


async def test_what_is_too_large_to_wait_is_dropped(harness: Harness) -> None:
    recorder = Recorder()
    harness.subscribe("t", recorder)
    half = bytes(MAX_QUEUED_BYTES // 2 + 1)
    harness.put(half)
    harness.put(half)
    harness.put(b"small")
    assert harness.dispatcher._dropped == 1
    await soon(harness.dispatcher.drain(1))
    assert recorder.payloads == [half, b"small"]


async def test_a_message_larger_than_the_limit_comes_through_alone(harness: Harness) -> None:
    recorder = Recorder()
    harness.subscribe("t", recorder)
    harness.put(bytes(MAX_QUEUED_BYTES + 1), mid=1)
    await recorder.next()
    assert harness.acknowledged == [1]


@pytest.mark.usefixtures("room_for_three")
async def test_an_overrun_at_qos_1_is_redelivered_when_the_rest_is_handled(
    harness: Harness, log: LogProbe
) -> None:
    recorder = Recorder()
    release = harness.subscribe_held("t", recorder)
    for n in range(1, 6):
        harness.put(b"%d" % n, mid=n)
    # QoS 0 has its own limit.
    harness.put(b"0")
    release.set()
    await log.next("messages_too_many")
    assert harness.reconnected == [1]
    assert harness.acknowledged == [1, 2, 3]
    harness.put(b"late", mid=6)
    harness.put(b"4", mid=4, connection_id=2, duplicate=True)
    await recorder.until_payload(b"4")
    assert recorder.payloads == [b"1", b"2", b"3", b"0", b"4"]
    await soon(harness.dispatcher.drain(1))
    assert harness.reconnected == [1]


@pytest.mark.usefixtures("room_for_three")
async def test_an_overrun_on_the_next_connection_is_redelivered_as_well(
    harness: Harness,
) -> None:
    recorder = Recorder()
    release = harness.subscribe_held("t", recorder)
    for n in (1, 2, 3):
        harness.put(b"%d" % n, mid=n)
    # The broker redelivers unacknowledged messages, and sends one more.
    for n in (1, 2, 3, 4):
        harness.put(b"%d" % n, mid=n, connection_id=2, duplicate=n < 4)
    assert harness.reconnected == []
    release.set()
    await recorder.until_payload(b"3")
    await soon(harness.dispatcher.drain(1))
    assert harness.reconnected == [2]
    harness.put(b"4", mid=4, connection_id=3)
    await recorder.until_payload(b"4")


async def test_an_overrun_just_when_the_last_message_is_done_is_not_forgotten(
    harness: Harness, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shared.mqtt.dispatcher._Backlog.has_room", lambda *_: False)
        harness.put(b"1", mid=1)
    await log.next("messages_too_many")
    assert harness.reconnected == [1]


@pytest.mark.usefixtures("room_for_three")
async def test_what_handlers_wait_for_has_room_of_its_own(harness: Harness) -> None:
    answer = asyncio.Event()

    async def ask(_topic: str, _payload: Any) -> None:
        await answer.wait()

    harness.subscribe("t", ask)
    harness.subscribe("urgent", lambda *_: answer.set())
    for _ in range(5):
        harness.put(b"x")
    assert harness.dispatcher._dropped == 2
    harness.put(b"x", topic="urgent")
    await soon(harness.dispatcher.drain(10))
    assert answer.is_set()
    assert harness.dispatcher._dropped == 2


@pytest.mark.parametrize("is_sent", [True, False])
async def test_a_message_that_failed_counts_as_handled_once_it_is_a_dead_letter(
    harness: Harness, is_sent: bool
) -> None:
    harness.sends_dead_letters = is_sent
    calls: list[Any] = []

    def count_and_fail(_topic: str, payload: Any) -> None:
        calls.append(payload)
        raise LookupError

    harness.dispatcher.add(Subscription("t", count_and_fail, qos=1, recent=RecentIds()))
    for connection in (1, 2):
        harness.put(b'{"request_id": "1"}', mid=1, connection_id=connection)
        await soon(harness.dispatcher.drain(1))
    # The same bytes are handled when they are sent again.
    assert len(calls) == 2
    assert harness.acknowledged == ([1, 1] if is_sent else [])


async def test_a_message_without_a_dead_letter_is_asked_for_again_later(
    harness: Harness, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher._RECONNECT_DELAY_SECONDS", 0.01)
    harness.sends_dead_letters = False
    harness.subscribe("t", fail)
    harness.put(b"1", mid=1, connection_id=7)
    harness.put(b"2", mid=2, connection_id=7)
    await log.next("messages_not_handled")
    assert harness.reconnected == [7]
    await harness.dispatcher.close()


@pytest.mark.usefixtures("room_for_three")
async def test_a_flood_that_is_dropped_is_no_work_for_the_loop(harness: Harness) -> None:
    harness.subscribe("t", print)
    for _ in range(1000):
        harness.put(b"x")
    assert harness.dispatcher._dropped == 997
    assert harness.scheduled == 2
    await harness.dispatcher.close()


async def test_a_handler_that_will_not_be_cancelled_is_left(
    harness: Harness, log: LogProbe
) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def stubborn(_topic: str, _payload: Any) -> None:
        while not release.is_set():
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    harness.subscribe("t", stubborn)
    harness.put(b"x")
    await soon(started.wait())
    await soon(harness.dispatcher.drain(0.01))
    assert (await log.next("handler_not_cancelled"))["task"] == "mqtt-handler t"
    release.set()
    await soon(harness.dispatcher.close())


async def test_a_handler_that_does_not_end_is_reported_once_though_nothing_more_comes(
    harness: Harness, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher.SLOW_HANDLER_SECONDS", 0.01)
    recorder = Recorder()
    release = harness.subscribe_held("t", recorder)
    harness.put(b"1", mid=1)
    assert (await log.next("handler_slow"))["topic"] == "t"
    # The next look at it, which stays silent.
    looked_again = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, looked_again.set)
    await soon(looked_again.wait())
    release.set()
    await recorder.next()
    assert log.names().count("handler_slow") == 1


async def test_a_message_that_fails_on_the_next_connection_too_is_asked_for_there(
    harness: Harness, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher._RECONNECT_DELAY_SECONDS", 0.05)
    harness.sends_dead_letters = False
    harness.subscribe("t", fail)
    harness.put(b"1", mid=1, connection_id=1)
    harness.put(b"1", mid=1, connection_id=2, duplicate=True)
    await log.next("messages_not_handled")
    assert harness.reconnected == [2]


async def test_a_drain_that_meets_a_duplicate_ends_at_once(harness: Harness, log: LogProbe) -> None:
    harness.subscribe("t", Recorder())
    harness.put(b"1", mid=1, duplicate=True)
    await soon(harness.dispatcher.drain(5))
    assert "handlers_cut_off" not in log.names()


async def test_what_the_broker_has_kept_may_be_left_out(harness: Harness) -> None:
    wanted, unwanted = Recorder(), Recorder()
    harness.subscribe("t", wanted)
    harness.dispatcher.add(
        Subscription("+", unwanted, qos=1, payload_format="bytes", skip_retained=True)
    )
    harness.put(b"kept", mid=1, retain=True)
    harness.put(b"new", mid=2)
    await unwanted.until_payload(b"new")
    assert wanted.payloads == [b"kept", b"new"]
    assert unwanted.payloads == [b"new"]
    assert harness.acknowledged == [1, 2]


async def test_what_nobody_wants_is_acknowledged_and_told_when_debugging(
    harness: Harness, log: LogProbe
) -> None:
    harness.put(b"1", mid=1)
    assert (await log.next("message_without_handler"))["topic"] == "t"
    assert harness.acknowledged == [1]


async def test_a_shared_subscription_gets_its_messages(harness: Harness) -> None:
    recorder = Recorder()
    harness.subscribe("$share/group/t", recorder)
    harness.put(b"1", mid=1)
    await recorder.next()
    assert harness.acknowledged == [1]


async def test_nothing_is_no_message_for_a_model(harness: Harness) -> None:
    recorder = Recorder()
    harness.dispatcher.add(Subscription("t", recorder, qos=1, model=Command))
    harness.put(b"", mid=1)
    harness.put(b'{"command": "refresh"}', mid=2)
    await recorder.next()
    assert harness.acknowledged == [1, 2]
    assert [command.command for command in recorder.payloads] == ["refresh"]


async def test_two_messages_of_one_trace_are_two(harness: Harness) -> None:
    recorder = Recorder()
    harness.dispatcher.add(Subscription("t", recorder, qos=1, recent=RecentIds()))
    for n, content in enumerate((1, 2, 1), start=1):
        harness.put(b'{"trace_id": "a", "round": %d}' % content, mid=n)
    await recorder.next()
    await recorder.next()
    await soon(harness.dispatcher.drain(1))
    assert [payload["round"] for payload in recorder.payloads] == [1, 2]
    assert harness.acknowledged == [1, 2, 3]


@pytest.mark.usefixtures("room_for_three")
async def test_drops_are_reported_once_in_a_while(
    harness: Harness, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher._DROP_REPORT_SECONDS", 0.01)
    harness.subscribe("t", print)
    for _ in range(10):
        harness.put(b"x")
    report = await log.next("messages_dropped")
    assert (report["dropped"], report["dropped_in_total"]) == (7, 7)


async def test_a_burst_leaves_the_loop_time_for_others(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher._TIME_SLICE_SECONDS", 0.0)
    order: list[object] = []
    harness.subscribe("t", lambda _, payload: order.append(payload))
    for payload in (b"1", b"2", b"3"):
        harness.put(payload)
    for _ in range(4):
        await asyncio.sleep(0)
        order.append("other")
    await soon(harness.dispatcher.drain(1))
    assert "other" in order[order.index(b"1") : order.index(b"3")]


async def test_a_fatal_message_is_handled_alone_before_it_counts(
    logger: structlog.stdlib.BoundLogger,
) -> None:
    harness = Harness(logger)
    deaths: dict[str, int] = {}
    saved: list[dict[str, int]] = []
    harness.dispatcher._journal = Journal(deaths, lambda: saved.append(dict(deaths)))
    recorder = Recorder()
    release = harness.subscribe_held("t", recorder)
    harness.subscribe("other", recorder)
    harness.put(b"new", mid=1)
    harness.put(b"redelivered", mid=2, duplicate=True)
    harness.put(b"retained", mid=3, retain=True, topic="other")
    await recorder.until_payload(b"retained")
    release.set()
    await recorder.until_payload(b"redelivered")
    await until(lambda: len(harness.acknowledged) == 3)
    # Each once before and once after its handler. The new message costs nothing.
    assert [list(each.values()) for each in saved] == [[2], [], [2], []]
    # All were in progress at the death of the process, so one waits for the other.
    deaths |= {key: 2 for each in saved for key in each}
    release = harness.subscribe_held("t", recorder)
    harness.put(b"redelivered", mid=2, duplicate=True)
    harness.put(b"retained", mid=3, retain=True, topic="other")
    await until(lambda: sorted(deaths.values()) == [2, 3])
    release.set()
    await recorder.until_payload(b"retained")
    await soon(harness.dispatcher.drain(1))
    assert deaths == {}


async def test_nothing_is_handled_after_the_end(harness: Harness) -> None:
    recorder = Recorder()
    harness.subscribe("t", recorder)
    await soon(harness.dispatcher.close())
    harness.put(b"late")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert recorder.messages == []
