"""Received messages on their way from the network thread to the handlers.

Each subscription has a queue and a task of its own: its messages are handled in the order of
arrival, one at a time, and a slow handler holds up no other. What waits is bounded: at QoS 1 by
the broker's window of unacknowledged messages, since a message is acknowledged only after it was
handled; at QoS 0 by number and by bytes, and what exceeds that is dropped and counted.
"""

import asyncio
import inspect
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel
from structlog.stdlib import BoundLogger

from shared.dedup import RecentIds
from shared.mqtt_errors import PayloadError
from shared.topics import is_wildcard, matches
from shared.tracing import bind_trace_id, new_trace_id

type Handler = Callable[[str, Any], Awaitable[object] | object]
type Decoding = Literal["json", "text", "bytes"]

MAX_QUEUED_BYTES = 32 * 2**20
_DROP_REPORT_SECONDS = 10.0
# A burst must leave the loop time for everything else.
_SLICE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Received:
    """An immutable copy of a message, safe to hand from thread to thread."""

    topic: str
    payload: bytes
    qos: int
    mid: int
    retain: bool
    # Which connection it came by: a message id means nothing on another one.
    connection: int


@dataclass(slots=True)
class _Delivery:
    """One message on its way to all subscriptions that match it."""

    message: Received
    remaining: int
    succeeded: bool = True
    document: Any = None
    decoded: bool = False

    def value(self, decoding: Decoding) -> Any:  # noqa: ANN401 - whatever JSON holds
        """The payload as the subscription wants it; raises PayloadError."""
        payload = self.message.payload
        if decoding == "bytes":
            return payload
        try:
            if decoding == "text":
                return payload.decode()
            if not self.decoded:
                # An empty payload is how a retained message is cleared (section 3.3.1.3).
                self.document = json.loads(payload) if payload else None
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
    model: type[BaseModel] | None
    decoding: Decoding
    recent: RecentIds | None
    queue: deque[_Delivery] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None


class Inbox:
    """Routes messages to subscriptions; `put` is for the network thread, all else for the loop."""

    def __init__(
        self,
        *,
        max_queued_messages: int,
        acknowledge: Callable[[Received], None],
        bury: Callable[[Received, BaseException, str], Awaitable[bool]],
        logger: BoundLogger,
    ) -> None:
        """`bury` publishes a dead letter and tells whether the broker has it."""
        self._max_queued_messages = max_queued_messages
        self._acknowledge = acknowledge
        self._bury = bury
        self._logger = logger
        self._subscriptions: dict[str, Subscription] = {}
        self._match = lru_cache(maxsize=1024)(self._find)
        self._arrived: deque[Received] = deque()
        self._wake_up_due = False
        self._workers: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._unfinished = 0
        self._resumed_by = 0
        # Written by one thread each, read by both: their differences are what waits at QoS 0.
        self._counted_in, self._bytes_in = 0, 0
        self._counted_out, self._bytes_out = 0, 0
        self._dropped = 0
        self._reported, self._report_due = 0, 0.0

    @property
    def dropped(self) -> int:
        """Messages at QoS 0 that found no room."""
        return self._dropped

    @property
    def waiting(self) -> int:
        """Messages that have arrived and are not handled yet."""
        return self._unfinished + len(self._arrived)

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

    # Network thread

    def put(self, message: Received, schedule: Callable[[Callable[[], None]], None]) -> None:
        """Take a message in, or drop it; `schedule` runs a function on the loop."""
        if message.qos == 0:
            size = len(message.payload)
            if (
                self._counted_in - self._counted_out >= self._max_queued_messages
                or self._bytes_in - self._bytes_out + size > MAX_QUEUED_BYTES
            ):
                self._dropped += 1
                self._report_drops()
                return
            self._counted_in += 1
            self._bytes_in += size
        self._arrived.append(message)
        if not self._wake_up_due:
            self._wake_up_due = True
            schedule(self._distribute)

    def _report_drops(self) -> None:
        now = time.monotonic()
        if now < self._report_due:
            return
        self._report_due = now + _DROP_REPORT_SECONDS
        new, self._reported = self._dropped - self._reported, self._dropped
        self._logger.warning("messages_dropped", dropped=new, dropped_in_total=self._dropped)

    # Event loop

    def forget_redelivered(self, connection: int) -> None:
        """A session was resumed by `connection`: what older ones left unhandled comes again."""
        self._resumed_by = connection

    async def drain(self) -> None:
        """Wait until every message that has arrived is handled."""
        while self.waiting:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Stop the handlers; a message whose handler was cut off stays unacknowledged."""
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    def _distribute(self) -> None:
        # First, so that a message that arrives from now on causes another call.
        self._wake_up_due = False
        while self._arrived:
            message = self._arrived.popleft()
            found = self._match(message.topic)
            if not found:
                self._finish(_Delivery(message, 0))
                continue
            self._unfinished += 1
            delivery = _Delivery(message, len(found))
            for subscription in found:
                self._enqueue(subscription, delivery)
        self._settle()

    def _enqueue(self, subscription: Subscription, delivery: _Delivery) -> None:
        subscription.queue.append(delivery)
        if subscription.worker is None:
            name = f"mqtt-handler {subscription.topic_filter}"
            subscription.worker = asyncio.create_task(self._work(subscription), name=name)
            self._workers.add(subscription.worker)
            subscription.worker.add_done_callback(self._workers.discard)

    def _find(self, topic: str) -> tuple[Subscription, ...]:
        exact = self._subscriptions.get(topic)
        wild = (
            subscription
            for subscription in self._subscriptions.values()
            if is_wildcard(subscription.topic_filter) and matches(subscription.topic_filter, topic)
        )
        return (*((exact,) if exact else ()), *wild)

    async def _work(self, subscription: Subscription) -> None:
        """Handle what is queued, then end; the next message starts a new worker."""
        slice_ends = time.monotonic() + _SLICE_SECONDS
        try:
            while subscription.queue:
                delivery = subscription.queue.popleft()
                if not self._comes_again(delivery.message):
                    delivery.succeeded &= await self._handle(subscription, delivery)
                delivery.remaining -= 1
                if not delivery.remaining:
                    self._unfinished -= 1
                    self._finish(delivery)
                if time.monotonic() > slice_ends:
                    await asyncio.sleep(0)
                    slice_ends = time.monotonic() + _SLICE_SECONDS
        finally:
            subscription.worker = None
            self._settle()

    def _comes_again(self, message: Received) -> bool:
        return message.qos > 0 and message.connection < self._resumed_by

    def _finish(self, delivery: _Delivery) -> None:
        message = delivery.message
        if message.qos == 0:
            self._counted_out += 1
            self._bytes_out += len(message.payload)
        elif delivery.succeeded and not self._comes_again(message):
            self._acknowledge(message)

    def _settle(self) -> None:
        if not self.waiting:
            self._idle.set()

    async def _handle(self, subscription: Subscription, delivery: _Delivery) -> bool:
        """Call the handler; True when the message is done with, also as a dead letter."""
        message = delivery.message
        trace_id = new_trace_id()
        try:
            value = delivery.value(subscription.decoding)
            message_id = None
            if isinstance(value, Mapping):
                trace_id = _text(value.get("trace_id")) or trace_id
                message_id = _text(value.get("request_id")) or _text(value.get("trace_id"))
            if subscription.recent and message_id and subscription.recent.seen(message_id):
                self._logger.debug("message_repeated", topic=message.topic, message_id=message_id)
                return True
            if subscription.model is not None:
                value = subscription.model.model_validate(value)
            with bind_trace_id(trace_id):
                result = subscription.handler(message.topic, value)
                if inspect.isawaitable(result):
                    await result
        except asyncio.CancelledError as error:
            # Ours when the client closes; else the handler was cancelled from within.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return await self._bury(message, error, trace_id)
        except Exception as error:  # noqa: BLE001 - reported as a dead letter, with its traceback
            return await self._bury(message, error, trace_id)
        return True


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
