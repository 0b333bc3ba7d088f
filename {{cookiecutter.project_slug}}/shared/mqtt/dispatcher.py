"""Queues of received messages, the handlers that work them off, and their acknowledgement.

Each subscription has its own queue and worker. Its messages are handled one at a time and in order,
and a slow handler delays no other subscription.

The queues are bounded by bytes. At QoS 0 the excess is dropped and counted. At QoS 1 a message is
acknowledged after it was handled, and brokers limit unacknowledged messages. Some exceed their
limit (Mosquitto 2.0.11: 700 instead of 20), above all with retained messages. The excess stays
unacknowledged, and the broker redelivers it on a new connection as soon as the queues are empty.

Acknowledgements are sent as handlers finish, not in the order of arrival (section 4.6). Otherwise
one slow handler would delay all others, and brokers only look at the message id.
"""

import asyncio
import errno
import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel
from structlog.stdlib import BoundLogger

from shared.errors import is_cancellation
from shared.mqtt.connection import ReceivedMessage
from shared.mqtt.dedup import RecentIds, message_id
from shared.mqtt.errors import FatalMessageError, PayloadError
from shared.mqtt.journal import Journal
from shared.mqtt.payload import PayloadFormat, decode
from shared.mqtt.topics import is_exact, matches
from shared.tracing import MAX_ID_LENGTH, bind_trace_id, new_trace_id

type Handler = Callable[[str, Any], Awaitable[object] | object]
type QoS = Literal[0, 1]

MAX_QUEUED_BYTES = 32 * 2**20
# Memory of a queued message without its payload.
MESSAGE_BYTES = 500
SLOW_HANDLER_SECONDS = 10.0
_DROP_REPORT_SECONDS = 5.0
_CANCELLATION_SECONDS = 0.4
_RECONNECT_DELAY_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 1.0, 30.0
# Faults of this machine that may pass. The message is not to blame.
_PASSING_FAULTS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
# A worker yields after this time, so that a burst does not block the event loop.
_TIME_SLICE_SECONDS = 0.02


class _Backlog:
    """Size of the waiting messages. The network thread calls `add`, the event loop `remove`."""

    def __init__(self) -> None:
        # Each counter is written by one thread only, so no lock is needed.
        self._messages_in, self._bytes_in = 0, 0
        self._messages_out, self._bytes_out = 0, 0

    @property
    def messages(self) -> int:
        return self._messages_in - self._messages_out

    def has_room(self, size: int) -> bool:
        # A message that is larger than the limit has room alone.
        waiting = self._bytes_in - self._bytes_out
        return not waiting or waiting + size + MESSAGE_BYTES <= MAX_QUEUED_BYTES

    def add(self, size: int) -> None:
        self._messages_in += 1
        self._bytes_in += size + MESSAGE_BYTES

    def remove(self, size: int) -> None:
        self._messages_out += 1
        self._bytes_out += size + MESSAGE_BYTES


@dataclass(slots=True)
class _Delivery:
    """One message in the queues of all subscriptions that match its topic."""

    message: ReceivedMessage
    remaining: int
    succeeded: bool = True
    document: Any = None
    decoded: bool = False

    def content(self, payload_format: PayloadFormat) -> Any:  # noqa: ANN401 - any JSON
        """Return the decoded payload. JSON is decoded once. Raises PayloadError."""
        if payload_format != "json":
            return decode(self.message.payload, payload_format)
        if not self.decoded:
            self.document = decode(self.message.payload, "json")
            self.decoded = True
        return self.document


@dataclass(eq=False, slots=True)
class Subscription:
    """A topic filter with its handler and its queue."""

    topic_filter: str
    handler: Handler
    qos: int
    model: type[BaseModel] | None = None
    payload_format: PayloadFormat = "json"
    recent: RecentIds | None = None
    skip_retained: bool = False
    queue: deque[_Delivery] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None
    busy_since: float = 0.0
    reported_slow: bool = False


class Dispatcher:
    """Passes messages to subscriptions. Only `put` is called on the network thread."""

    def __init__(
        self,
        *,
        max_payload_bytes: int,
        schedule: Callable[[Callable[[], None]], None],
        acknowledge: Callable[[ReceivedMessage], None],
        reconnect: Callable[[int], None],
        send_dead_letter: Callable[[ReceivedMessage, BaseException, str], Awaitable[bool]],
        urgent_topics: frozenset[str] = frozenset(),
        journal: Journal | None = None,
        logger: BoundLogger,
    ) -> None:
        """Create a dispatcher without subscriptions.

        `schedule` runs a function on the event loop, from any thread. `reconnect` replaces a
        connection, so that the broker redelivers. `send_dead_letter` returns whether the broker
        has the dead letter, and never raises. `urgent_topics` have their own limit at QoS 0,
        because handlers wait for their messages.
        """
        self._max_payload_bytes = max_payload_bytes
        self._backlogs = (_Backlog(), _Backlog())
        self._urgent_backlog, self._urgent_topics = _Backlog(), urgent_topics
        self._journal = journal
        self._schedule = schedule
        self._acknowledge = acknowledge
        self._reconnect = reconnect
        self._send_dead_letter = send_dead_letter
        self._logger = logger
        self._subscriptions: dict[str, Subscription] = {}
        self._matching = lru_cache(maxsize=1024)(self._find_matching)
        self._arrived: deque[ReceivedMessage] = deque()
        self._wake_up_scheduled = False
        self._draining = self._closed = False
        self._workers: dict[asyncio.Task[None], Subscription] = {}
        self._slow_handler_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._unfinished = 0
        self._unacknowledged: dict[int, _Delivery] = {}
        self._overrun_connection_id = self._replaced_connection_id = 0
        self._failed_connection_id = 0
        self._reconnect_timer: asyncio.TimerHandle | None = None
        self._dropped = 0
        self._dropped_reported = 0
        self._drop_report_due = False
        self._drop_report_timer: asyncio.TimerHandle | None = None

    def filters(self) -> list[tuple[str, int]]:
        return [(item.topic_filter, item.qos) for item in self._subscriptions.values()]

    def add(self, subscription: Subscription) -> None:
        """Add a subscription, which replaces one with the same filter."""
        self.remove(subscription.topic_filter)
        self._subscriptions[subscription.topic_filter] = subscription
        self._matching.cache_clear()

    def remove(self, topic_filter: str) -> bool:
        """Remove a subscription. Its waiting messages are still handled."""
        removed = self._subscriptions.pop(topic_filter, None)
        self._matching.cache_clear()
        return removed is not None

    async def drain(self, timeout_seconds: float) -> None:
        """Handle all waiting messages. Handlers that exceed the timeout are cancelled."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._arrived or self._unfinished:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            self._logger.warning("handlers_cut_off", messages=self._unfinished + len(self._arrived))
            await self._cancel_workers()

    async def close(self) -> None:
        """Cancel all handlers and ignore further messages."""
        self._closed = True
        await self._cancel_workers()
        for timer in (self._reconnect_timer, self._slow_handler_timer):
            if timer is not None:
                timer.cancel()
        if self._drop_report_timer is not None:
            self._drop_report_timer.cancel()
            self._report_drops()

    async def _cancel_workers(self) -> None:
        # Skip the current task, because a handler may call `disconnect` itself.
        workers = self._workers.keys() - {asyncio.current_task()}
        for worker in workers:
            worker.cancel()
        if workers:
            _, stuck = await asyncio.wait(workers, timeout=_CANCELLATION_SECONDS)
            for worker in stuck:
                self._logger.error("handler_not_cancelled", task=worker.get_name())

    # Network thread

    def put(self, message: ReceivedMessage) -> None:
        """Queue a message, unless the limit is reached."""
        backlog, size = self._backlog_of(message), len(message.payload)
        # Skip all later messages of this connection as well, because order matters.
        if message.qos and message.connection_id == self._overrun_connection_id:
            return
        if not backlog.has_room(size):
            if message.qos:
                self._overrun_connection_id = message.connection_id
                # Check the queues here too, because the loop may have just emptied them.
                self._schedule(self._reconnect_after_overrun)
            else:
                self._dropped += 1
                if not self._drop_report_due:
                    self._drop_report_due = True
                    self._schedule(self._schedule_drop_report)
            return
        backlog.add(size)
        self._arrived.append(message)
        if not self._wake_up_scheduled:
            self._wake_up_scheduled = True
            self._schedule(self._distribute)

    def _backlog_of(self, message: ReceivedMessage) -> _Backlog:
        if not message.qos and message.topic in self._urgent_topics:
            return self._urgent_backlog
        return self._backlogs[message.qos]

    # Event loop

    def _schedule_drop_report(self) -> None:
        if not self._closed:
            loop = asyncio.get_running_loop()
            self._drop_report_timer = loop.call_later(_DROP_REPORT_SECONDS, self._report_drops)

    def _report_drops(self) -> None:
        self._drop_report_timer = None
        self._drop_report_due = False
        total = self._dropped
        self._logger.warning(
            "messages_dropped", dropped=total - self._dropped_reported, dropped_in_total=total
        )
        self._dropped_reported = total

    def _distribute(self) -> None:
        # Reset the flag first, so that a message that arrives later schedules another call.
        self._wake_up_scheduled = False
        idle: dict[Subscription, None] = {}
        while self._arrived and not self._closed:
            message = self._arrived.popleft()
            if message.duplicate and (self._is_in_progress(message) or self._draining):
                self._backlog_of(message).remove(len(message.payload))
                continue
            subscriptions = self._matching(message.topic)
            if message.retain:
                subscriptions = tuple(item for item in subscriptions if not item.skip_retained)
            delivery = _Delivery(message, len(subscriptions))
            self._unfinished += 1
            if message.qos:
                self._unacknowledged[message.mid] = delivery
            for subscription in subscriptions:
                subscription.queue.append(delivery)
                if subscription.worker is None:
                    idle[subscription] = None
            if not subscriptions:
                self._logger.debug(
                    "message_without_handler", topic=message.topic, retain=message.retain
                )
                self._finish(delivery)
        for subscription in idle:
            self._start_worker(subscription)
        if not self._unfinished:
            # `drain` waits for duplicates as well, which are not handled.
            self._idle.set()

    def _is_in_progress(self, message: ReceivedMessage) -> bool:
        """Return whether a redelivered message is still queued or handled.

        It is handled once, and acknowledged on the new connection. Dropping the queued message in
        favour of the redelivered one could lose it, because a broker may forget messages.
        """
        delivery = self._unacknowledged.get(message.mid)
        if delivery is None or delivery.message[:2] != message[:2]:
            return False
        delivery.message = message
        return True

    def _start_worker(self, subscription: Subscription) -> None:
        # An eager task runs a handler that does not wait without another turn of the loop.
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
        if self._slow_handler_timer is None and self._workers and not self._closed:
            loop = asyncio.get_running_loop()
            self._slow_handler_timer = loop.call_later(SLOW_HANDLER_SECONDS, self._report_slow)

    def _report_slow(self) -> None:
        # No other log line shows a handler that never ends: the broker just stops sending.
        self._slow_handler_timer = None
        now = time.monotonic()
        for subscription in self._workers.values():
            seconds = now - (subscription.busy_since or now)
            if seconds >= SLOW_HANDLER_SECONDS and not subscription.reported_slow:
                subscription.reported_slow = True
                self._logger.warning(
                    "handler_slow",
                    topic=subscription.topic_filter,
                    seconds=round(seconds),
                    hint="its messages wait, and the broker limits unacknowledged messages",
                )
        self._watch_workers()

    def _find_matching(self, topic: str) -> tuple[Subscription, ...]:
        exact = self._subscriptions.get(topic)
        wild = (
            subscription
            for subscription in self._subscriptions.values()
            if not is_exact(subscription.topic_filter) and matches(subscription.topic_filter, topic)
        )
        return (*((exact,) if exact else ()), *wild)

    async def _work(self, subscription: Subscription) -> None:
        """Handle the queue and end. The next message starts a new worker."""
        now = time.monotonic()
        slice_ends = now + _TIME_SLICE_SECONDS
        try:
            while subscription.queue:
                delivery = subscription.queue.popleft()
                subscription.busy_since, subscription.reported_slow = now, False
                message = delivery.message
                if self._journal is None or not (message.duplicate or message.retain):
                    succeeded = await self._handle(subscription, delivery)
                else:
                    topic_filter = subscription.topic_filter
                    async with self._journal.record(topic_filter, message) as is_fatal:
                        succeeded = await self._handle(subscription, delivery, is_fatal=is_fatal)
                delivery.succeeded &= succeeded
                delivery.remaining -= 1
                if not delivery.remaining:
                    self._finish(delivery)
                now = time.monotonic()
                if now > slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = now + _TIME_SLICE_SECONDS
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
                self._schedule_reconnect(message.connection_id)
            self._reconnect_after_overrun()
        self._unfinished -= 1
        if not self._unfinished:
            self._idle.set()

    def _reconnect_after_overrun(self) -> None:
        connection_id = self._overrun_connection_id
        if connection_id > self._replaced_connection_id and not self._backlogs[1].messages:
            self._replaced_connection_id = connection_id
            self._logger.warning("messages_too_many", hint="the broker redelivers them")
            self._reconnect(connection_id)

    def _schedule_reconnect(self, connection_id: int) -> None:
        # A timer that a failure on an earlier connection started may still be running.
        self._failed_connection_id = connection_id
        if self._reconnect_timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._reconnect_timer = loop.call_later(
                _RECONNECT_DELAY_SECONDS, self._reconnect_after_failure
            )

    def _reconnect_after_failure(self) -> None:
        # A failed message would count as unacknowledged until the connection is lost otherwise.
        self._reconnect_timer = None
        self._logger.warning("messages_not_handled", hint="the broker redelivers them")
        self._reconnect(self._failed_connection_id)

    async def _handle(
        self, subscription: Subscription, delivery: _Delivery, *, is_fatal: bool = False
    ) -> bool:
        """Call the handler until no passing fault of this machine prevents it.

        Return False if the broker has to redeliver the message.
        """
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._try(subscription, delivery, is_fatal)
            except OSError as error:
                self._logger.warning(
                    "subscription_paused",
                    topic=subscription.topic_filter,
                    error=error,
                    retry_seconds=pause_seconds,
                )
            # A pause is not a slow handler.
            subscription.busy_since = 0.0
            await asyncio.sleep(pause_seconds)
            subscription.busy_since = time.monotonic()
            pause_seconds = min(pause_seconds * 2, _MAX_PAUSE_SECONDS)

    async def _try(self, subscription: Subscription, delivery: _Delivery, is_fatal: bool) -> bool:
        message, recent = delivery.message, subscription.recent
        trace_id, key = "", None
        try:
            value = self._content(delivery, subscription.payload_format, is_fatal)
            if isinstance(value, dict):
                trace_id = _id(value.get("trace_id"))
                if recent is not None:
                    # A replay is handled even if the original message was handled.
                    sent_id = _id(value.get("replay_id")) or _id(value.get("request_id"))
                    sent_as = message_id(sent_id, trace_id, message.payload)
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
            if recent is not None and key:
                # Forget the id, so that the message is handled when it is sent again.
                recent.forget(key)
            if _is_passing(error):
                raise
            return await self._send_dead_letter(message, error, trace_id or new_trace_id())
        return True

    def _content(self, delivery: _Delivery, payload_format: PayloadFormat, is_fatal: bool) -> Any:  # noqa: ANN401 - any JSON
        if is_fatal:
            text = "the process has ended three times while it handled this message"
            raise FatalMessageError(text)
        size, limit = len(delivery.message.payload), self._max_payload_bytes
        if size > limit:
            text = f"a payload of {size} bytes is larger than MQTT_MAX_PAYLOAD_BYTES ({limit})"
            raise PayloadError(text)
        return delivery.content(payload_format)


def _is_passing(error: BaseException) -> bool:
    """Return whether the message is not to blame: a fault of this machine, or the stop."""
    is_fault = isinstance(error, OSError) and error.errno in _PASSING_FAULTS
    return is_fault or is_cancellation(error)


def _id(value: object) -> str:
    """Return an id that is short enough to be kept and logged, otherwise an empty string."""
    is_valid = isinstance(value, str) and len(value) <= MAX_ID_LENGTH and value.isprintable()
    return value if isinstance(value, str) and is_valid else ""
