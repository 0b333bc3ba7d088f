"""Signals, without a broker."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.config import Settings
from shared.service import BaseService
from tests.conftest import MakeSettings
from tests.probes import soon

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = [signal.SIGTERM, signal.SIGINT]


class Waiting(BaseService[Settings]):
    name = "waiting"

    async def run(self) -> None:
        await self.wait_for_shutdown()


async def start(service: Waiting) -> asyncio.Task[None]:
    """Start a service and return when its signal handlers are installed."""
    task = asyncio.create_task(service.start())
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_stops_the_service(
    make_settings: MakeSettings, number: signal.Signals
) -> None:
    task = await start(Waiting(make_settings()))
    os.kill(os.getpid(), number)
    await soon(task)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_a_signal_stops_all_services_of_the_process(make_settings: MakeSettings) -> None:
    tasks = [await start(Waiting(make_settings())) for _ in range(2)]
    os.kill(os.getpid(), signal.SIGTERM)
    for task in tasks:
        await soon(task)


async def test_signals_still_stop_the_second_service_after_the_first(
    make_settings: MakeSettings,
) -> None:
    first, second = Waiting(make_settings()), Waiting(make_settings())
    first_task, second_task = await start(first), await start(second)
    first.stop()
    await soon(first_task)
    os.kill(os.getpid(), signal.SIGTERM)
    await soon(second_task)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_a_blocked_process(tmp_path: Path, number: signal.Signals) -> None:
    program = f"""
import asyncio, os, time
from shared.config import Settings
from shared.service import BaseService, run_service

class Blocked(BaseService[Settings]):
    name = "blocked"

    async def run(self):
        os.kill(os.getpid(), {number:d})
        os.kill(os.getpid(), {number:d})
        time.sleep(60)

run_service(Blocked)
"""
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "DATA_DIR": str(tmp_path)}
    ended = subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=environment, check=False, timeout=60
    )
    assert ended.returncode == -number
