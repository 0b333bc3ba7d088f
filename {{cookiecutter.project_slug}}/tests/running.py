"""Services that run within the process of the tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.service import BaseService
from tests.observer import PATIENCE_SECONDS


@asynccontextmanager
async def running[T: BaseService[Any]](service: T) -> AsyncIterator[T]:
    """The service, started and connected; it is stopped at the end. Nest them to run several."""
    task = asyncio.create_task(service.start())
    try:
        await service.mqtt.wait_connected(PATIENCE_SECONDS)
        yield service
    finally:
        service.stop("the test is over")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await task
