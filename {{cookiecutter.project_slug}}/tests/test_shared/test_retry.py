"""Retries with backoff."""

import asyncio

import pytest

from shared.retry import async_retry


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    remembered: list[float] = []

    async def remember(seconds: float) -> None:
        remembered.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", remember)
    return remembered


class Flaky:
    """Fails a number of times, then succeeds."""

    def __init__(self, failures: int) -> None:
        self.calls, self._failures = 0, failures

    @async_retry(max_retries=3, base_delay=1.0, max_delay=3.0, exceptions=(ConnectionError,))
    async def call(self, error: type[Exception] = ConnectionError) -> int:
        self.calls += 1
        if self.calls <= self._failures:
            message = f"attempt {self.calls}"
            raise error(message)
        return self.calls


async def test_returns_the_first_success_after_growing_waits(waits: list[float]) -> None:
    assert await Flaky(failures=3).call() == 4
    assert 1 <= waits[0] <= 2 <= waits[1] <= 3
    assert waits[2] == 3


async def test_raises_the_last_error(waits: list[float]) -> None:
    with pytest.raises(ConnectionError, match="attempt 4"):
        await Flaky(failures=9).call()
    assert len(waits) == 3


async def test_never_retries_another_error(waits: list[float]) -> None:
    with pytest.raises(KeyError):
        await Flaky(failures=9).call(KeyError)
    assert waits == []
