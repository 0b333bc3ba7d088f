"""Received messages on their way from the network thread to the handlers.

Each subscription has a queue and a worker of its own: its messages are handled in the order of
arrival, one at a time, and a slow handler holds up no other.

What waits is bounded, by number and by bytes. At QoS 0 the excess is dropped and counted. At QoS 1
a message is acknowledged only after it was handled, so that the broker's window of unacknowledged
messages is the bound; of a broker that knows no such window the excess is left unacknowledged, and
asked for again, by a new connection, as soon as the rest is handled.

Acknowledgements go out as handlers end, not in the order of arrival that section 4.6 asks for: one
slow handler would hold up all others, and brokers look only at the message id.
"""

import asyncio
import inspect
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, NoReturn

from pydantic import BaseModel
from structlog.stdlib import BoundLogger

from shared.dedup import RecentIds, message_id
from shared.mqtt_errors import PayloadError
from shared.topics import is_exact, matches
from shared.tracing import MAX_ID_LENGTH, bind_trace_id, new_trace_id

type Handler = Callable[[str, Any], Awaitable[object] | object]
type Decoding = Literal["json", "text", "bytes"]

MAX_QUEUED_BYTES = 32 * 2**20
SLOW_HANDLER_SECONDS = 10.0
_DROP_REPORT_SECONDS = 5.0
_CANCELLATION_SECONDS = 0.4
_REPETITION_SECONDS = 60.0
# A burst must leave the loop time for everything else.
_SLICE_SECONDS = 0.02


class Received(NamedTuple):
    """An immutable copy of a message, safe to hand from thread to thread."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool
    mid: int
    # Which connection it came by: a message id means nothing on another one.
    connection: int


class _Backlog:
    """What waits at one QoS; `add` is for the network thread, `remove` for the loop."""

    def __init__(self, max_messages: int) -> None:
        self._max_messages = max_messages
        # Written by one thread each, read by both: no lock is needed.
        self._messages_in, self._bytes_in = 0, 0
        self._messages_out, self._bytes_out = 0, 0

    @property
    def messages(self) -> int:
        return self._messages_in - self._messages_out

    def has_room(self, size: int) -> bool:
        waiting = self.messages
        return waiting == 0 or (
            waiting < self._max_messages
            and self._bytes_in - self._bytes_out + size <= MAX_QUEUED_BYTES
        )

    def add(self, size: int) -> None:
        self._messages_in += 1
        self._bytes_in += size

    def remove(self, size: int) -> None:
        self._messages_out += 1
        self._bytes_out += size


@dataclass(slots=True)
class _Delivery:
    """One message on its way to all subscriptions that match it."""

    message: Received
    remaining: int
    succeeded: bool = True
    document: Any = None
    decoded: bool = False

    def value(self, decoding: Decoding) -> Any:  # noqa: ANN401 - any JSON
        """The payload as the subscription wants it; raises PayloadError."""
        payload = self.message.payload
        if decoding == "bytes":
            return payload
        try:
            if decoding == "text":
                return payload.decode()
            if not self.decoded:
                # An empty payload is how a retained message is cleared (section 3.3.1.3).
                self.document = _JSON.decode(payload.decode()) if payload else None
                self.decoded = True
        except (ValueError, RecursionError) as error:
            message = f"the payload is no {'JSON' if decoding == 'json' else 'UTF-8 text'}: {error}"
            raise PayloadError(message) from error
        return self.document


@dataclass(eq=False, slots=True)
class Subscription:
    """A topic filter and what is done with its messages."""

    topic_filter: str
    handler: Handler
    qos: int
    model: type[BaseModel] | None = None
    decoding: Decoding = "json"
    recent: RecentIds | None = None
    retained: bool = True
    queue: deque[_Delivery] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None
    busy_since: float = 0.0
    found_slow: bool = False


class Inbox:
    """Routes messages to subscriptions; `put` is for the network thread, all else for the loop."""

    def __init__(
        self,
        *,
        max_queued_messages: int,
        schedule: Callable[[Callable[[], None]], None],
        acknowledge: Callable[[Received], None],
        ask_again: Callable[[int], None],
        bury: Callable[[Received, BaseException, str], Awaitable[bool]],
        urgent_topics: frozenset[str] = frozenset(),
        logger: BoundLogger,
    ) -> None:
        """`schedule` runs a function on the loop, from any thread.

        `ask_again` ends a connection; on the next one the broker repeats what is unacknowledged.
        `bury` publishes a dead letter and tells whether the broker has it; it never raises.
        `urgent_topics` have room of their own: what handlers wait for must not find it taken.
        """
        self._backlogs = (_Backlog(max_queued_messages), _Backlog(max_queued_messages))
        self._urgent_backlog, self._urgent_topics = _Backlog(max_queued_messages), urgent_topics
        self._schedule = schedule
        self._acknowledge = acknowledge
        self._ask_again = ask_again
        self._bury = bury
        self._logger = logger
        self._subscriptions: dict[str, Subscription] = {}
        self._match = lru_cache(maxsize=1024)(self._find)
        self._arrived: deque[Received] = deque()
        self._wake_up_due = False
        self._draining = self._closed = False
        self._workers: dict[asyncio.Task[None], Subscription] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._unfinished = 0
        self._unacknowledged: dict[int, _Delivery] = {}
        self._overrun_connection = self._asked_connection = 0
        self._failed_connection = 0
        self._repetition: asyncio.TimerHandle | None = None
        self._dropped = 0
        self._dropped_reported = 0
        self._drop_report_due = False
        self._drop_report: asyncio.TimerHandle | None = None

    @property
    def dropped(self) -> int:
        """Messages at QoS 0 that found no room."""
        return self._dropped

    def filters(self) -> list[tuple[str, int]]:
        return [(item.topic_filter, item.qos) for item in self._subscriptions.values()]

    def add(self, subscription: Subscription) -> None:
        """Put a subscription in, in place of an earlier one with the same filter."""
        self.remove(subscription.topic_filter)
        self._subscriptions[subscription.topic_filter] = subscription
        self._match.cache_clear()

    def remove(self, topic_filter: str) -> bool:
        """Take a subscription out; what waits for it is still handled."""
        removed = self._subscriptions.pop(topic_filter, None)
        self._match.cache_clear()
        return removed is not None

    async def drain(self, timeout_seconds: float) -> None:
        """Handle what has arrived; what takes longer is cut off, and stays unacknowledged."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._arrived or self._unfinished:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            self._logger.warning("handlers_cut_off", messages=self._unfinished + len(self._arrived))
            await self._cut_off()

    async def close(self) -> None:
        """Handle nothing any more."""
        self._closed = True
        await self._cut_off()
        for timer in (self._repetition, self._watch):
            if timer is not None:
                timer.cancel()
        if self._drop_report is not None:
            self._drop_report.cancel()
            self._report_drops()

    async def _cut_off(self) -> None:
        # Without the one that a handler runs in which closes the client itself.
        workers = self._workers.keys() - {asyncio.current_task()}
        for worker in workers:
            worker.cancel()
        if workers:
            _, stuck = await asyncio.wait(workers, timeout=_CANCELLATION_SECONDS)
            for worker in stuck:
                self._logger.error("handler_not_cancelled", task=worker.get_name())

    # Network thread

    def put(self, message: Received) -> None:
        """Take a message in, or leave it."""
        backlog, size = self._backlog_of(message), len(message.payload)
        # After one that was left, the rest of the connection: they are to come in order.
        if message.qos and message.connection == self._overrun_connection:
            return
        if not backlog.has_room(size):
            if message.qos:
                self._overrun_connection = message.connection
                # The loop may have handled the last one at this very moment.
                self._schedule(self._ask_again_after_overrun)
            else:
                self._dropped += 1
                if not self._drop_report_due:
                    self._drop_report_due = True
                    self._schedule(self._plan_drop_report)
            return
        backlog.add(size)
        self._arrived.append(message)
        if not self._wake_up_due:
            self._wake_up_due = True
            self._schedule(self._distribute)

    def _backlog_of(self, message: Received) -> _Backlog:
        if not message.qos and message.topic in self._urgent_topics:
            return self._urgent_backlog
        return self._backlogs[message.qos]

    # Event loop

    def _plan_drop_report(self) -> None:
        if not self._closed:
            loop = asyncio.get_running_loop()
            self._drop_report = loop.call_later(_DROP_REPORT_SECONDS, self._report_drops)

    def _report_drops(self) -> None:
        self._drop_report = None
        self._drop_report_due = False
        total = self._dropped
        self._logger.warning(
            "messages_dropped", dropped=total - self._dropped_reported, dropped_in_total=total
        )
        self._dropped_reported = total

    def _distribute(self) -> None:
        # First, so that a message that arrives from now on causes another call.
        self._wake_up_due = False
        idle: dict[Subscription, None] = {}
        while self._arrived and not self._closed:
            message = self._arrived.popleft()
            if message.duplicate and (self._waits_already(message) or self._draining):
                self._backlog_of(message).remove(len(message.payload))
                continue
            found = self._match(message.topic)
            if message.retain:
                found = tuple(subscription for subscription in found if subscription.retained)
            delivery = _Delivery(message, len(found))
            self._unfinished += 1
            if message.qos:
                self._unacknowledged[message.mid] = delivery
            for subscription in found:
                subscription.queue.append(delivery)
                if subscription.worker is None:
                    idle[subscription] = None
            if not found:
                self._logger.debug("message_not_wanted", topic=message.topic, retain=message.retain)
                self._finish(delivery)
        for subscription in idle:
            self._start_worker(subscription)

    def _waits_already(self, message: Received) -> bool:
        """Whether this is a message of a broken connection that we still have, sent again.

        It is handled once, and acknowledged on the new connection. Had we dropped ours and
        trusted in the repetition, a broker that lost its disk would cost us the message.
        """
        delivery = self._unacknowledged.get(message.mid)
        if delivery is None or delivery.message[:2] != message[:2]:
            return False
        delivery.message = message
        return True

    def _start_worker(self, subscription: Subscription) -> None:
        # Eager: a handler that need not wait is done when this returns.
        worker = asyncio.Task(
            self._work(subscription),
            loop=asyncio.get_running_loop(),
            name=f"mqtt-handler {subscription.topic_filter}",
            eager_start=True,
        )
        if not worker.done():
            subscription.worker = worker
            self._workers[worker] = subscription
            worker.add_done_callback(self._workers.pop)
            self._watch_workers()

    def _watch_workers(self) -> None:
        if self._watch is None and self._workers and not self._closed:
            loop = asyncio.get_running_loop()
            self._watch = loop.call_later(SLOW_HANDLER_SECONDS, self._report_slow)

    def _report_slow(self) -> None:
        # A handler that never ends shows in nothing else: the broker just sends no more.
        self._watch = None
        now = time.monotonic()
        for subscription in self._workers.values():
            seconds = now - (subscription.busy_since or now)
            if seconds >= SLOW_HANDLER_SECONDS and not subscription.found_slow:
                subscription.found_slow = True
                self._logger.warning(
                    "handler_slow",
                    topic=subscription.topic_filter,
                    seconds=round(seconds),
                    hint="its messages wait; enough of them at QoS 1 hold up all others",
                )
        self._watch_workers()

    def _find(self, topic: str) -> tuple[Subscription, ...]:
        exact = self._subscriptions.get(topic)
        wild = (
            subscription
            for subscription in self._subscriptions.values()
            if not is_exact(subscription.topic_filter) and matches(subscription.topic_filter, topic)
        )
        return (*((exact,) if exact else ()), *wild)

    async def _work(self, subscription: Subscription) -> None:
        """Handle what is queued, then end; the next message starts a new worker."""
        now = time.monotonic()
        slice_ends = now + _SLICE_SECONDS
        try:
            while subscription.queue:
                delivery = subscription.queue.popleft()
                subscription.busy_since, subscription.found_slow = now, False
                delivery.succeeded &= await self._handle(subscription, delivery)
                delivery.remaining -= 1
                if not delivery.remaining:
                    self._finish(delivery)
                now = time.monotonic()
                if now > slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = now + _SLICE_SECONDS
        finally:
            subscription.worker = None
            subscription.busy_since = 0.0

    def _finish(self, delivery: _Delivery) -> None:
        message = delivery.message
        self._backlog_of(message).remove(len(message.payload))
        if message.qos:
            if self._unacknowledged.get(message.mid) is delivery:
                del self._unacknowledged[message.mid]
            if delivery.succeeded:
                self._acknowledge(message)
            else:
                self._plan_repetition(message.connection)
            self._ask_again_after_overrun()
        self._unfinished -= 1
        if not self._unfinished:
            self._idle.set()

    def _ask_again_after_overrun(self) -> None:
        connection = self._overrun_connection
        if connection > self._asked_connection and not self._backlogs[1].messages:
            self._asked_connection = connection
            self._logger.warning("messages_too_many", hint="the broker sends them again")
            self._ask_again(connection)

    def _plan_repetition(self, connection: int) -> None:
        # It may have failed on an earlier connection as well, whose time is still running.
        self._failed_connection = connection
        if self._repetition is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._repetition = loop.call_later(_REPETITION_SECONDS, self._ask_again_after_failure)

    def _ask_again_after_failure(self) -> None:
        # Else it would keep its place in the broker's window until the connection breaks by itself.
        self._repetition = None
        self._logger.warning("messages_not_handled", hint="the broker sends them again")
        self._ask_again(self._failed_connection)

    async def _handle(self, subscription: Subscription, delivery: _Delivery) -> bool:
        """Call the handler; True when the message is done with, also as a dead letter."""
        message, recent = delivery.message, subscription.recent
        trace_id, key = "", None
        try:
            value = delivery.value(subscription.decoding)
            if isinstance(value, dict):
                trace_id = _id(value.get("trace_id"))
                if recent is not None:
                    sent_as = message_id(_id(value.get("request_id")), trace_id, message.payload)
                    key = sent_as and (message.topic, sent_as)
                    if key and recent.seen(key):
                        self._logger.debug(
                            "message_repeated", topic=message.topic, message_id=sent_as
                        )
                        return True
            if subscription.model is not None:
                if value is None and not message.payload:
                    return True
                value = subscription.model.model_validate(value)
            trace_id = trace_id or new_trace_id()
            with bind_trace_id(trace_id):
                result = subscription.handler(message.topic, value)
                if inspect.isawaitable(result):
                    await result
        except (Exception, asyncio.CancelledError) as error:
            # Ours when the client closes; else the handler was cancelled from within.
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            is_buried = await self._bury(message, error, trace_id or new_trace_id())
            if recent is not None and key and not is_buried:
                # It will come again, for another try.
                recent.forget(key)
            return is_buried
        return True


def _id(value: object) -> str:
    """A sender's id if it is fit to be kept and logged, else nothing."""
    is_fit = isinstance(value, str) and len(value) <= MAX_ID_LENGTH and value.isprintable()
    return value if isinstance(value, str) and is_fit else ""


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is no JSON"
    raise ValueError(message)


# Without NaN and Infinity, which Python reads and JSON does not know.
_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
