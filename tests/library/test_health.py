import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.health import HealthMonitor

ROOT = Path(__file__).resolve().parents[2]
MAX_AGE = 300.0


@dataclass
class Link:
    connected: bool = True
    thread_alive: bool = True


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(tmp_path: Path, clock: Clock) -> HealthMonitor:
    return HealthMonitor(
        tmp_path / "data" / "healthcheck",
        max_age_seconds=MAX_AGE,
        logger=structlog.stdlib.get_logger(),
        clock=clock,
    )


@dataclass
class Check:
    """The health check of a container."""

    path: Path

    def __call__(self) -> tuple[int, str]:
        environment = {**os.environ, "HEALTH_PATH": str(self.path)}
        program = ROOT / "services/example-service/healthcheck.py"
        done = subprocess.run(  # noqa: S603
            [sys.executable, program], env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def file_age(tmp_path: Path, clock: Clock) -> Callable[[], float | None]:
    """Return the age that the health check compares with its limit, or None without a file."""
    path = tmp_path / "data" / "healthcheck"

    def age() -> float | None:
        if not path.exists():
            return None
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return clock.now - float(content["monotonic"])

    return age


type FileAge = Callable[[], float | None]


def run_for(monitor: HealthMonitor, clock: Clock, link: Link, seconds: float) -> None:
    end = clock.now + seconds
    while clock.now < end:
        clock.now = min(clock.now + monitor.tick_seconds, end)
        monitor.update(link)


def test_a_clock_that_is_set_changes_nothing(tmp_path: Path) -> None:
    """Ages are told by the monotonic clock, which nobody sets."""
    path = tmp_path / "healthcheck"
    before = time.monotonic()
    monitor = HealthMonitor(path, max_age_seconds=MAX_AGE, logger=structlog.stdlib.get_logger())
    monitor.update(Link())
    written = json.loads(path.read_text(encoding="utf-8"))["monotonic"]
    assert before <= written <= time.monotonic()


def test_no_file_before_the_first_connection(
    monitor: HealthMonitor, clock: Clock, file_age: FileAge
) -> None:
    run_for(monitor, clock, Link(connected=False), 60)
    assert file_age() is None
    assert monitor.status(Link(connected=False)).reasons == ("not connected to the broker yet",)


def test_an_idle_subscriber_stays_healthy(
    monitor: HealthMonitor, clock: Clock, file_age: FileAge
) -> None:
    run_for(monitor, clock, Link(), 10 * MAX_AGE)
    age = file_age()
    assert age is not None
    assert age <= MAX_AGE / 10 + monitor.tick_seconds
    assert monitor.status(Link()).healthy


def test_a_broker_that_is_gone_for_too_long_and_comes_back(
    monitor: HealthMonitor, clock: Clock, file_age: FileAge
) -> None:
    monitor.update(Link())
    gone = Link(connected=False)
    run_for(monitor, clock, gone, MAX_AGE)
    assert monitor.status(gone).healthy
    run_for(monitor, clock, gone, 10)
    status = monitor.status(gone)
    assert not status.healthy
    assert status.reasons == ("no connection to the broker for 310 s",)
    age = file_age()
    assert age is not None
    assert age > MAX_AGE
    run_for(monitor, clock, Link(), 10)
    assert monitor.status(Link()).healthy
    age = file_age()
    assert age is not None
    assert age < MAX_AGE / 10


def test_a_dead_network_thread_is_unhealthy_whatever_the_client_believes(
    monitor: HealthMonitor, clock: Clock, file_age: FileAge
) -> None:
    monitor.update(Link())
    dead = Link(connected=True, thread_alive=False)
    assert monitor.status(dead).reasons == ("the MQTT network thread is not running",)
    run_for(monitor, clock, dead, MAX_AGE + 10)
    age = file_age()
    assert age is not None
    assert age > MAX_AGE


def test_a_blocked_loop_lets_the_file_grow_old(
    monitor: HealthMonitor, clock: Clock, file_age: FileAge
) -> None:
    monitor.update(Link())
    clock.now += MAX_AGE + 1
    age = file_age()
    assert age is not None
    assert age > MAX_AGE


def test_a_loop_without_success_turns_unhealthy_within_the_maximum_age_of_its_next_cycle(
    monitor: HealthMonitor, clock: Clock, file_age: FileAge
) -> None:
    monitor.expect_success_every(30)
    for _ in range(20):
        run_for(monitor, clock, Link(), 30)
        monitor.record_success()
    assert monitor.status(Link()).healthy
    run_for(monitor, clock, Link(), 30 + MAX_AGE)
    assert monitor.status(Link()).healthy
    run_for(monitor, clock, Link(), 10)
    assert monitor.status(Link()).reasons == ("no success of run() for 340 s",)
    age = file_age()
    assert age is not None
    assert age > MAX_AGE
    monitor.record_success()
    run_for(monitor, clock, Link(), 10)
    assert monitor.status(Link()).healthy


def test_a_loop_slower_than_the_maximum_age_is_healthy_between_its_cycles(
    monitor: HealthMonitor, clock: Clock
) -> None:
    monitor.expect_success_every(3600)
    for _ in range(3):
        run_for(monitor, clock, Link(), 3600)
        assert monitor.status(Link()).healthy
        monitor.record_success()


def test_a_loop_that_never_succeeds_is_unhealthy(monitor: HealthMonitor, clock: Clock) -> None:
    monitor.expect_success_every(30)
    run_for(monitor, clock, Link(), 30 + MAX_AGE + 1)
    assert not monitor.status(Link()).healthy


def test_successes_of_a_subscriber_bind_it_to_nothing(monitor: HealthMonitor, clock: Clock) -> None:
    monitor.record_success()
    run_for(monitor, clock, Link(), 10 * MAX_AGE)
    assert monitor.status(Link()).healthy


def test_a_health_file_vouches_for_the_process_that_wrote_it(tmp_path: Path) -> None:
    """A recent file of a process that has ended says nothing about the next one."""
    path = tmp_path / "healthcheck"
    check = Check(path)
    assert check() == (1, "the process has not been healthy since its start\n")
    HealthMonitor(path, max_age_seconds=MAX_AGE, logger=structlog.stdlib.get_logger()).update(
        Link()
    )
    code, text = check()
    assert code == 0
    assert re.fullmatch(r"last health timestamp \d+ s ago\n", text)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": ended.pid}))
    assert check() == (1, "the process has not been healthy since its start\n")


def test_nothing_else_stays_in_the_folder(monitor: HealthMonitor, tmp_path: Path) -> None:
    monitor.update(Link())
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["healthcheck"]


def test_a_folder_that_cannot_be_written_is_logged_once_and_survived(
    monitor: HealthMonitor, clock: Clock, tmp_path: Path, file_age: FileAge
) -> None:
    obstacle = tmp_path / "data"
    obstacle.write_text("a file where the folder should be", encoding="utf-8")
    with structlog.testing.capture_logs() as lines:
        run_for(monitor, clock, Link(), 60)
    assert [line["event"] for line in lines] == ["health_file_not_written"]
    obstacle.unlink()
    run_for(monitor, clock, Link(), 5)
    assert file_age() == 0
