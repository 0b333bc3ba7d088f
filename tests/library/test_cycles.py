"""The loop of a poller: what it logs, when it is healthy and what it publishes."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

from shared.config import Settings
from shared.cycles import SUMMARY_SECONDS, FailureLog, has_changed
from shared.errors import ExternalError
from shared.service import BaseService
from shared.tracing import current_trace_id
from tests.fakes import FakeMQTT
from tests.probes import soon, until
from tests.running import running

type MakeSettings = Callable[..., Settings]

INTERVAL_SECONDS = 10


class ServerError(ExternalError):
    pass


def fetch(reason: str) -> None:
    raise ServerError(reason)


def parse(text: str) -> Any:
    return json.loads(text)


class Outage:
    """Cycles of a failing work, with a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        logger = structlog.stdlib.get_logger()
        self.log = FailureLog(logger, "measure", clock=lambda: self.now)

    def fail(self, work: Callable[[str], object], argument: str) -> None:
        self.now += INTERVAL_SECONDS
        with pytest.raises((ServerError, ValueError)) as caught:
            work(argument)
        self.log.failed(caught.value)


def test_a_failure_of_another_system_is_one_line_with_its_reason() -> None:
    with structlog.testing.capture_logs() as lines:
        Outage().fail(fetch, "no route")
    (line,) = lines
    assert (line["event"], line["log_level"], line["work"]) == (
        "cycle_failed",
        "warning",
        "measure",
    )
    assert line["error"] == "ServerError: no route"
    assert "exc_info" not in line


def test_any_other_failure_has_its_traceback() -> None:
    with structlog.testing.capture_logs() as lines:
        Outage().fail(parse, "{")
    assert lines[0]["log_level"] == "error"
    assert isinstance(lines[0]["exc_info"], ValueError)


@pytest.mark.parametrize("work", [fetch, parse])
def test_an_outage_of_25_minutes_costs_a_few_lines(work: Callable[[str], object]) -> None:
    outage = Outage()
    with structlog.testing.capture_logs() as lines:
        for number in range(25 * 60 // INTERVAL_SECONDS):
            outage.fail(work, f"text {number}")
        outage.log.succeeded()
        outage.log.succeeded()
    names = [line["event"] for line in lines]
    summaries = 25 * 60 // SUMMARY_SECONDS - 1
    assert names == ["cycle_failed", *["cycle_still_failing"] * int(summaries), "cycle_recovered"]
    assert [line["failures"] for line in lines[1:]] == [31, 61, 91, 121, 150]
    assert len({line["since"] for line in lines[1:]}) == 1


def test_failures_that_take_turns_are_known_after_the_first_time_until_a_success() -> None:
    outage = Outage()
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            outage.fail(fetch, "no route")
            outage.fail(parse, "{")
        outage.log.succeeded()
        outage.fail(fetch, "no route")
    assert [line["event"] for line in lines] == [
        *["cycle_failed"] * 2,
        "cycle_recovered",
        "cycle_failed",
    ]


@pytest.mark.parametrize(
    ("new", "delta", "changed"),
    [
        ({"watts": 100.0, "mode": "eco"}, 0.0, False),
        ({"watts": 100.1, "mode": "eco"}, 0.0, True),
        ({"watts": 104.9, "mode": "eco"}, 5, False),
        ({"watts": 95.0, "mode": "eco"}, 5, True),
        ({"watts": 104.9, "mode": "off"}, 5, True),
        ({"watts": 104.9, "mode": "eco"}, {"volts": 5}, True),
        ({"watts": 104.9, "mode": "eco"}, {"watts": 5}, False),
        ({"watts": True, "mode": "eco"}, 1000, True),
        ({"watts": None, "mode": "eco"}, 1000, True),
        ({"watts": 100.0}, 5, True),
        ({"watts": 100.0, "mode": "eco", "trace_id": "t", "timestamp": "t"}, 0.0, False),
    ],
)
def test_a_change_is_a_number_that_differs_by_delta_or_any_other_field(
    new: dict[str, Any], delta: float | Mapping[str, float], changed: bool
) -> None:
    assert has_changed({"watts": 100.0, "mode": "eco"}, new, delta) is changed


class Reading(BaseModel):
    watts: float


class Meter(BaseService[Settings]):
    """Measures in two loops, one of which may fail."""

    name = "meter"
    error: Exception | None = None
    traces: list[str | None]

    async def run(self) -> None:
        self.traces = []
        self.mqtt.connect_background()
        self.create_task(self.every(0.01, self.beat), name="beat")
        await self.every(0.01, self.measure)

    async def beat(self) -> None:
        self.traces.append(current_trace_id())

    async def measure(self) -> None:
        if self.error is not None:
            raise self.error
        await self.publish("reading", {"watts": 100})


@pytest.fixture
def meter(make_settings: MakeSettings, topic_prefix: str) -> Meter:
    meter = Meter(
        make_settings(
            heartbeat_interval_seconds=0, health_max_age_seconds=0.2, health_watchdog=False
        )
    )
    meter.mqtt = FakeMQTT("meter", topic_prefix)
    return meter


async def test_every_cycle_has_a_trace_of_its_own_and_the_stop_ends_the_loop(meter: Meter) -> None:
    async with running(meter):
        await until(lambda: len(meter.traces) >= 3)
    assert None not in meter.traces
    assert len(set(meter.traces)) == len(meter.traces)


async def test_the_health_needs_a_success_of_each_loop(meter: Meter) -> None:
    async with running(meter):
        await until(lambda: meter.health.healthy)
        meter.error = ServerError("no route")
        await until(lambda: not meter.health.healthy)
        assert meter.health.reasons[0].startswith("no success of measure for")
        meter.error = None
        await until(lambda: meter.health.healthy)


async def test_publishes_what_has_changed_or_is_due(meter: Meter) -> None:
    fake: Any = meter.mqtt

    async def publish(watts: float, **options: Any) -> bool:
        return await meter.publish_if_changed("power", Reading(watts=watts), delta=5, **options)

    meter.mqtt.connect_background()
    assert await publish(100)
    assert not await publish(103)
    # The last published value counts, so that small steps add up to a change.
    assert await publish(106)
    assert not await publish(106, at_least_every=60)
    assert await publish(106, at_least_every=0, retain=True)
    topic = meter.topic("power")
    assert [message["watts"] for message in fake.payloads(topic)] == [100, 106, 106]
    assert fake.retained[topic]["service"] == "meter"


class Client:
    def __init__(self, name: str, closed: list[str]) -> None:
        self.name, self.closed = name, closed

    async def aclose(self) -> None:
        self.closed.append(self.name)
        if self.name == "broken":
            raise OSError("the socket is gone")


class PlainClient:
    def __init__(self, closed: list[str]) -> None:
        self.closed = closed

    def close(self) -> None:
        self.closed.append("plain")


async def test_clients_are_closed_in_reverse_order_even_if_one_fails(meter: Meter) -> None:
    closed: list[str] = []
    assert meter.add_client(Client("first", closed)).name == "first"
    meter.add_client(Client("broken", closed))
    meter.add_client(PlainClient(closed))
    starting = asyncio.create_task(meter.start())
    await meter.mqtt.wait_connected()
    assert closed == []
    meter.stop()
    await soon(starting)
    assert closed == ["plain", "broken", "first"]


def test_a_client_must_have_a_method_that_closes_it(meter: Meter) -> None:
    with pytest.raises(TypeError, match=r"dict must have a method aclose\(\) or close\(\)"):
        meter.add_client({})
