"""Probes of the MQTT client's tests: handlers that record, and the log."""

import asyncio
import logging
from typing import Any

from tests.probes import soon


class Recorder:
    """A handler that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self._queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def __call__(self, topic: str, payload: Any) -> None:
        self.messages.append((topic, payload))
        self._queue.put_nowait((topic, payload))

    @property
    def payloads(self) -> list[Any]:
        return [payload for _, payload in self.messages]

    async def next(self) -> tuple[str, Any]:
        return await soon(self._queue.get())

    async def until_payload(self, payload: object) -> None:
        while (await self.next())[1] != payload:
            pass


class LogProbe(logging.Handler):
    """The events of the log, from every thread, as structlog made them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self._loop = loop
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, dict):
            self.events.append(record.msg)
            self._loop.call_soon_threadsafe(self._queue.put_nowait, record.msg)

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    async def next(self, name: str, **fields: object) -> dict[str, Any]:
        """Return the next event of this name with these fields, and skip all others."""
        while True:
            event = await soon(self._queue.get())
            if event["event"] == name and fields.items() <= event.items():
                return event
