"""Tests of {{ cookiecutter.service_slug }}."""

import threading

import pytest

from tests.conftest import StartService
from tests.running import StartedService

NAME = "{{ cookiecutter.service_slug }}"


@pytest.fixture
async def service(start_service: StartService) -> StartedService:
    return await start(start_service)


async def start(start_service: StartService) -> StartedService:
    return await start_service(NAME, source="garden/+/heat", alarm_above=20.0)


def statistics(service: StartedService) -> tuple[int, float]:
    """Return the number of readings and the highest one, as retained by the broker."""
    kept = service.mqtt.retained[service.instance.topic("statistics")]
    return kept["readings"], kept["highest"]


async def test_keeps_statistics_of_all_readings(service: StartedService) -> None:
    await service.deliver("garden/1/heat", {"value": 3.5})
    await service.deliver("garden/2/heat", {"value": 1.5})
    await service.deliver("cellar/1/heat", {"value": 9.5})
    assert statistics(service) == (2, 3.5)


async def test_counts_a_redelivered_reading_once(service: StartedService) -> None:
    for value in (3.5, 3.5, 4.5):
        await service.deliver("garden/1/heat", {"value": value, "trace_id": "1"})
    assert statistics(service) == (2, 4.5)


async def test_raises_an_alarm_above_the_limit_only(service: StartedService) -> None:
    await service.deliver("garden/1/heat", {"value": 20.0})
    await service.deliver("garden/1/heat", {"value": 20.5})
    (alarm,) = service.published("alarm")
    assert (alarm["value"], alarm["limit"]) == (20.5, 20.0)
    assert alarm["source"].endswith("/garden/1/heat")


@pytest.mark.parametrize("reading", ['{"temperature": 3.5}', '{"value": "nan"}', "{"])
async def test_a_reading_without_a_value_becomes_a_dead_letter(
    service: StartedService, reading: str
) -> None:
    await service.deliver("garden/1/heat", reading)
    (letter,) = service.mqtt.dead_letters
    assert letter["payload"] == reading
    assert service.published("statistics") == []


@pytest.mark.parametrize(("broken", "expected"), [(False, (2, 3.5)), (True, (1, 1.0))])
async def test_counts_on_after_a_restart_and_from_zero_without_a_valid_state(
    service: StartedService, start_service: StartService, broken: bool, expected: tuple[int, float]
) -> None:
    await service.deliver("garden/1/heat", {"value": 3.5})
    await service.stop()
    if broken:
        (service.settings.data_dir / "state.json").write_text('{"readings": null}')
    again = await start(start_service)
    await again.deliver("garden/1/heat", {"value": 1.0})
    assert statistics(again) == expected


async def test_a_slow_disk_does_not_block_the_event_loop(
    service: StartedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    monkeypatch.setattr("os.fsync", lambda _: threads.add(threading.get_ident()))
    await service.deliver("garden/1/heat", {"value": 3.5})
    assert threads
    assert threading.get_ident() not in threads


async def test_replies_with_its_statistics(service: StartedService) -> None:
    await service.deliver("garden/1/heat", {"value": 3.5})
    reply = await service.command("statistics")
    assert (reply["status"], reply["readings"], reply["highest"]) == ("ok", 1, 3.5)
