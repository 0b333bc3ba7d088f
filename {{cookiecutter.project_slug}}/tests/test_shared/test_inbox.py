"""The inbox by itself: what takes too long or is too large to wait for with a broker."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from shared.inbox import MAX_QUEUED_BYTES, Handler, Inbox, Received, Subscription
from tests.probes import LogProbe, Recorder, soon


class Harness:
    """An inbox whose network thread is the test."""

    def __init__(self, logger: structlog.stdlib.BoundLogger) -> None:
        self.acknowledged: list[int] = []
        self.asked_again: list[int] = []
        self.inbox = Inbox(
            max_queued_messages=3,
            schedule=self._schedule,
            acknowledge=lambda message: self.acknowledged.append(message.mid),
            ask_again=self.asked_again.append,
            bury=self._bury,
            logger=logger,
        )

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        self.inbox.add(Subscription(topic_filter, handler, qos=1, decoding="bytes"))

    def put(self, payload: bytes, *, mid: int = 0, connection: int = 1, **fields: Any) -> None:
        qos = 1 if mid else 0
        message = Received("t", payload, qos, retain=False, duplicate=False, mid=mid, connection=1)
        self.inbox.put(message._replace(connection=connection, **fields))

    def _schedule(self, function: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(function)

    async def _bury(self, _message: Received, _error: BaseException, _trace_id: str) -> bool:
        return True


@pytest.fixture
def harness(logger: structlog.stdlib.BoundLogger) -> Harness:
    return Harness(logger)


async def test_what_is_too_large_to_wait_is_dropped(harness: Harness) -> None:
    recorder = Recorder()
    harness.subscribe("t", recorder)
    half = bytes(MAX_QUEUED_BYTES // 2 + 1)
    harness.put(half)
    harness.put(half)
    harness.put(b"small")
    assert harness.inbox.dropped == 1
    await soon(harness.inbox.drain(1))
    assert recorder.payloads == [half, b"small"]


async def test_a_message_larger_than_the_limit_comes_through_alone(harness: Harness) -> None:
    recorder = Recorder()
    harness.subscribe("t", recorder)
    harness.put(bytes(MAX_QUEUED_BYTES + 1), mid=1)
    await recorder.next()
    assert harness.acknowledged == [1]


async def test_an_overrun_at_qos_1_is_asked_for_again_when_the_rest_is_handled(
    harness: Harness, log: LogProbe
) -> None:
    recorder, release = Recorder(), asyncio.Event()

    async def wait(topic: str, payload: Any) -> None:
        await release.wait()
        recorder(topic, payload)

    harness.subscribe("t", wait)
    for n in range(1, 6):
        harness.put(b"%d" % n, mid=n)
    # Room at QoS 0 is its own.
    harness.put(b"0")
    release.set()
    await log.next("messages_too_many")
    assert harness.asked_again == [1]
    assert harness.acknowledged == [1, 2, 3]
    harness.put(b"late", mid=6)
    harness.put(b"4", mid=4, connection=2, duplicate=True)
    await recorder.until_payload(b"4")
    assert recorder.payloads == [b"1", b"2", b"3", b"0", b"4"]
    await soon(harness.inbox.drain(1))
    assert harness.asked_again == [1]


async def test_a_slow_handler_that_others_wait_for_is_reported_once(
    harness: Harness, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.inbox.SLOW_HANDLER_SECONDS", 0.0)
    started, release, recorder = asyncio.Event(), asyncio.Event(), Recorder()

    async def wait(topic: str, payload: Any) -> None:
        started.set()
        await release.wait()
        recorder(topic, payload)

    harness.subscribe("t", wait)
    harness.put(b"1")
    await soon(started.wait())
    harness.put(b"2")
    harness.put(b"3")
    assert (await log.next("handler_slow"))["topic"] == "t"
    release.set()
    await recorder.until_payload(b"3")
    assert log.names().count("handler_slow") == 1


async def test_drops_are_reported_once_in_a_while(
    harness: Harness, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.inbox._DROP_REPORT_SECONDS", 0.01)
    harness.subscribe("t", print)
    for _ in range(10):
        harness.put(b"x")
    report = await log.next("messages_dropped")
    assert (report["dropped"], report["dropped_in_total"]) == (7, 7)


async def test_a_burst_leaves_the_loop_time_for_others(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.inbox._SLICE_SECONDS", 0.0)
    order: list[object] = []
    harness.subscribe("t", lambda _, payload: order.append(payload))
    for payload in (b"1", b"2", b"3"):
        harness.put(payload)
    for _ in range(4):
        await asyncio.sleep(0)
        order.append("other")
    await soon(harness.inbox.drain(1))
    assert "other" in order[order.index(b"1") : order.index(b"3")]


async def test_nothing_is_handled_after_the_end(harness: Harness) -> None:
    recorder = Recorder()
    harness.subscribe("t", recorder)
    await soon(harness.inbox.close())
    harness.put(b"late")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert recorder.messages == []
