"""Tests of {{ cookiecutter.service_slug }}."""

import pytest

from tests.conftest import StartService
from tests.probes import until
from tests.running import StartedService

NAME = "{{ cookiecutter.service_slug }}"


@pytest.fixture
async def service(start_service: StartService) -> StartedService:
    return await start(start_service)


async def start(start_service: StartService) -> StartedService:
    return await start_service(NAME, poll_interval_seconds=0.01, health_max_age_seconds=0.3)


async def test_publishes_a_reading_each_cycle(service: StartedService) -> None:
    first, second = await service.next_published("reading", 2)
    assert (first["cycle"], second["cycle"]) == (1, 2)
    assert first["service"] == NAME
    service.modules.schemas.Reading.model_validate(first)


async def test_waits_for_the_poll_interval(start_service: StartService) -> None:
    service = await start_service(NAME, poll_interval_seconds=60)
    await service.next_published("reading")
    await service.command("refresh")
    assert len(service.published("reading")) == 2


async def test_is_healthy_again_once_a_cycle_succeeds(
    service: StartedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("the sensor is away")

    with monkeypatch.context() as broken:
        broken.setattr("os.getloadavg", fail)
        await until(lambda: not service.instance.health.healthy)
    await until(lambda: service.instance.health.healthy)


async def test_measures_at_once_on_the_command_refresh(service: StartedService) -> None:
    reply = await service.command("refresh")
    assert reply["status"] == "ok"
    assert isinstance(reply["value"], float)


@pytest.mark.parametrize(("broken", "expected"), [(False, 3), (True, 1)])
async def test_counts_on_after_a_restart_and_from_one_without_a_valid_state(
    service: StartedService, start_service: StartService, broken: bool, expected: int
) -> None:
    await service.next_published("reading", 2)
    await service.stop()
    state = service.settings.data_dir / "state.json"
    state.write_text('{"cycle": null}' if broken else '{"cycle": 2}')
    again = await start(start_service)
    (first,) = await again.next_published("reading")
    assert first["cycle"] == expected


async def test_the_health_check_passes_while_it_works(
    service: StartedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthcheck = service.modules.healthcheck
    await service.mqtt.wait_for(lambda: healthcheck.main() == 0)
    monkeypatch.setattr(healthcheck, "MAX_AGE_SECONDS", -1)
    assert healthcheck.main() == 1
