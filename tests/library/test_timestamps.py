from datetime import UTC, datetime, timedelta, timezone

from shared.config import Settings
from shared.service import BaseService
from shared.timestamps import format_utc
from tests.conftest import ROOT, MakeSettings
from tests.fakes import FakeMQTT


class Sender(BaseService[Settings]):
    name = "sender"

    async def run(self) -> None:
        pass


def test_a_time_of_any_zone() -> None:
    noon = datetime(2026, 1, 1, 13, tzinfo=timezone(timedelta(hours=1)))
    assert format_utc(noon) == "2026-01-01T12:00:00Z"


async def test_the_time_of_an_event(make_settings: MakeSettings, fake_mqtt: FakeMQTT) -> None:
    service = Sender(make_settings())
    service.mqtt = fake_mqtt
    fake_mqtt.connect_background()
    await fake_mqtt.wait_connected()
    before = datetime.now(UTC)
    await service.publish("measured", {})
    [(_, payload)] = fake_mqtt.published
    assert payload["timestamp"].endswith("Z")
    assert before <= datetime.fromisoformat(payload["timestamp"]) <= datetime.now(UTC)


def test_no_other_module_has_a_form_of_its_own() -> None:
    found = [
        path.name
        for path in (ROOT / "shared").rglob("*.py")
        if "isoformat(" in path.read_text(encoding="utf-8")
    ]
    assert found == ["timestamps.py"]
