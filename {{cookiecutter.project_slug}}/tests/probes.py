"""How tests wait."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.observer import PATIENCE_SECONDS


async def soon[T](awaitable: Awaitable[T]) -> T:
    """The result, or TimeoutError when it takes far too long."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await awaitable


async def until(condition: Callable[[], bool]) -> None:
    """Poll for a condition without an event, such as a file of the broker."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
