import asyncio
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import structlog

from shared.debugger import wait_for_debugger


class WaitForClient:
    """Like debugpy's: blocks until a client comes or `cancel` is called."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.released.wait(timeout=30)

    def cancel(self) -> None:
        self.released.set()


class FakeDebugpy(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(wait_for_client=WaitForClient())
        self.address: tuple[str, int] | None = None

    def listen(self, address: tuple[str, int]) -> None:
        self.address = address


@pytest.fixture
def debugpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDebugpy]:
    fake = FakeDebugpy()
    monkeypatch.setitem(sys.modules, "debugpy", fake)
    yield fake
    fake.wait_for_client.cancel()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - what DEBUG_HOST names
async def test_it_waits_for_a_client_on_this_machine_unless_told_otherwise(
    debugpy: FakeDebugpy, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.delenv("DEBUG_HOST", raising=False)
    if host != "127.0.0.1":
        monkeypatch.setenv("DEBUG_HOST", host)
    waiting = asyncio.create_task(wait_for_debugger(asyncio.Event(), structlog.stdlib.get_logger()))
    assert await asyncio.to_thread(debugpy.wait_for_client.entered.wait, 30)
    assert not waiting.done()
    assert debugpy.address == (host, 5678)
    debugpy.wait_for_client.released.set()
    await waiting


async def test_a_stop_ends_the_waiting(debugpy: FakeDebugpy) -> None:
    stopping = asyncio.Event()
    stopping.set()
    await wait_for_debugger(stopping, structlog.stdlib.get_logger())
    assert debugpy.wait_for_client.released.is_set()


async def test_without_debugpy_the_service_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "debugpy", None)
    with structlog.testing.capture_logs() as lines:
        await wait_for_debugger(asyncio.Event(), structlog.stdlib.get_logger())
    assert [line["event"] for line in lines] == ["debugger_missing"]
