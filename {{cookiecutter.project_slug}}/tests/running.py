"""Services that run in the process of the tests."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from shared.service import BaseService
from tests.fakes import FakeMQTT
from tests.observer import PATIENCE_SECONDS


class StartedService:
    """A service that `start_service` runs with a broker in memory.

    `instance` is the service, `mqtt` its client, `modules.schemas` its `schemas.py`.
    """

    def __init__(self, instance: Any, mqtt: FakeMQTT, modules: SimpleNamespace) -> None:
        self.instance, self.mqtt, self.modules = instance, mqtt, modules
        self.settings = instance.settings
        self._task = asyncio.create_task(instance.start())

    def published(self, event: str) -> list[Any]:
        """Return the payloads of an event, in order."""
        return self.mqtt.payloads(self.instance.topic(event))

    async def next_published(self, event: str, count: int = 1) -> list[Any]:
        """Wait for the first `count` payloads of an event."""
        await self.mqtt.wait_for(lambda: len(self.published(event)) >= count)
        return self.published(event)[:count]

    async def deliver(self, topic: str, payload: Any) -> None:
        """Deliver a message on a topic below the prefix and wait until it is handled."""
        await self.mqtt.deliver(f"{self.settings.topic_prefix}/{topic}", payload)

    async def command(self, name: str, **fields: Any) -> Any:
        """Send a command and return the reply."""
        reply_to = f"{self.settings.topic_prefix}/tester/response"
        message = {"command": name, "request_id": secrets.token_hex(8), "reply_to": reply_to}
        message |= fields
        await self.deliver(f"coordinator/command/{self.instance.name}", message)
        return self.mqtt.payloads(reply_to)[-1]

    async def connected(self) -> None:
        """Wait for the connection. Raise what ended the service if there is none."""
        connecting = asyncio.create_task(self.mqtt.wait_connected(PATIENCE_SECONDS))
        await asyncio.wait({connecting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            connecting.cancel()
            await self._task
        else:
            await connecting

    async def stop(self) -> None:
        """Stop the service in order. Raise what it crashed with."""
        self.instance.stop("the test has ended")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._task


def service_class(main: ModuleType) -> type[BaseService[Any]]:
    """Return the service that a `main.py` defines."""
    return next(
        value
        for value in vars(main).values()
        if isinstance(value, type) and issubclass(value, BaseService) and value is not BaseService
    )


@asynccontextmanager
async def running[T: BaseService[Any]](
    service: T, mqtt: FakeMQTT | None = None
) -> AsyncIterator[T]:
    """Run a service until the block ends, connected to its broker or to one in memory.

    Nest them to run several.
    """
    if mqtt is not None:
        service.mqtt = mqtt
    task = asyncio.create_task(service.start())
    try:
        await service.mqtt.wait_connected(PATIENCE_SECONDS)
        yield service
    finally:
        service.stop("the test has ended")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await task
