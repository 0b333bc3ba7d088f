"""Trying again."""

import asyncio
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from shared.retry import async_retry


class FlakyError(Exception):
    pass


class Flaky:
    """Fails as often as it is told to."""

    def __init__(self, failures: int, error: type[Exception] = FlakyError) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error

    async def call(self, value: int) -> int:
        self.calls += 1
        if self.calls <= self._failures:
            message = f"attempt {self.calls}"
            raise self._error(message)
        return value


@pytest.fixture
def no_wait() -> Iterator[None]:
    """Remove the time between attempts."""
    with pytest.MonkeyPatch.context() as patch:

        async def at_once(_seconds: float) -> None:
            pass

        patch.setattr(asyncio, "sleep", at_once)
        yield


@pytest.mark.usefixtures("no_wait")
async def test_returns_the_result_of_the_first_success() -> None:
    flaky = Flaky(failures=2)
    assert await async_retry(max_retries=2, exceptions=(FlakyError,))(flaky.call)(7) == 7
    assert flaky.calls == 3


@pytest.mark.usefixtures("no_wait")
async def test_raises_the_last_error_itself() -> None:
    flaky = Flaky(failures=9)
    with pytest.raises(FlakyError, match="attempt 3"):
        await async_retry(max_retries=2, exceptions=(FlakyError,))(flaky.call)(7)


@pytest.mark.usefixtures("no_wait")
async def test_lets_every_other_error_pass_at_once() -> None:
    flaky = Flaky(failures=9, error=KeyError)
    with pytest.raises(KeyError):
        await async_retry(exceptions=(FlakyError,))(flaky.call)(7)
    assert flaky.calls == 1


async def test_waits_longer_each_time_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    async def remember(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", remember)
    flaky = Flaky(failures=4)
    retry = async_retry(max_retries=4, base_delay=1.0, max_delay=5.0, exceptions=(FlakyError,))
    await retry(flaky.call)(7)
    assert len(waits) == 4
    lows = [1, 2, 4, 5]
    assert all(low <= wait <= min(low + 1, 5) for low, wait in zip(lows, waits, strict=True))


async def test_gives_up_when_the_time_is_over() -> None:
    flaky = Flaky(failures=1000)
    retried = async_retry(
        max_retries=1000, base_delay=0.01, max_delay=0.01, exceptions=(FlakyError,), timeout=1
    )
    with pytest.raises(FlakyError):
        await asyncio.wait_for(retried(flaky.call)(7), 10)
    assert 1 < flaky.calls < 1000


async def test_is_cancelled_at_once() -> None:
    task = asyncio.ensure_future(
        async_retry(base_delay=60, max_delay=60, exceptions=(FlakyError,))(Flaky(failures=9).call)(
            7
        )
    )
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("no_wait")
async def test_a_function_may_say_what_to_retry_and_when() -> None:
    def judge(error: Exception) -> bool | float:
        return 7.0 if str(error) == "attempt 1" else str(error) == "attempt 2"

    flaky = Flaky(failures=9)
    with capture_logs() as logs, pytest.raises(FlakyError, match="attempt 3"):
        await async_retry(max_retries=5, exceptions=judge)(flaky.call)(7)
    assert [log["wait_seconds"] == 7.0 for log in logs] == [True, False]


@pytest.mark.usefixtures("no_wait")
async def test_logs_each_repetition_as_a_warning_without_the_arguments() -> None:
    with capture_logs() as logs:
        await async_retry(exceptions=(FlakyError,))(Flaky(failures=2).call)(4711)
    assert {(log["event"], log["log_level"]) for log in logs} == {("retry_scheduled", "warning")}
    errors = [(log["retry"], str(log["error"])) for log in logs]
    assert errors == [(1, "attempt 1"), (2, "attempt 2")]
    assert logs[0]["function"].endswith("Flaky.call")
    assert "4711" not in str(logs)


def test_wants_to_know_what_to_retry() -> None:
    with pytest.raises(ValueError, match="exceptions must name"):
        async_retry()


def test_wants_an_async_function() -> None:
    with pytest.raises(TypeError, match="must be an async function"):
        async_retry(exceptions=(FlakyError,))(lambda value: Flaky(failures=1).call(value))
