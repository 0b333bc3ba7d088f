import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.signals import stop_on_signal

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_asks_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    asked = asyncio.get_running_loop().create_future()
    with stop_on_signal(asked.set_result):
        os.kill(os.getpid(), number)
        assert await asked == number.name
    assert signal.getsignal(number) is before


async def test_the_second_signal_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with stop_on_signal(lambda _name: None):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [128 + signal.SIGINT]


def test_a_forked_child_does_not_hold_up_the_end() -> None:
    program = """
import asyncio, os, signal, time
from shared.signals import stop_on_signal

async def main():
    with stop_on_signal(print):
        child = os.fork()
        if not child:
            time.sleep(600)
    os.kill(child, signal.SIGKILL)

asyncio.run(main())
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    ended = subprocess.run(command, cwd=ROOT, check=False, timeout=60)  # noqa: S603
    assert ended.returncode == 0


def test_the_second_signal_ends_a_process_whose_loop_is_blocked() -> None:
    program = """
import asyncio, os, signal, time
from shared.signals import stop_on_signal

async def main():
    with stop_on_signal(print):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

asyncio.run(main())
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, check=False, timeout=60)  # noqa: S603
    assert ended.returncode == 128 + signal.SIGTERM
