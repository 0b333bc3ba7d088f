"""Watches the readings of other services: keeps statistics and raises alarms."""

import asyncio

from config import ServiceSettings
from pydantic import BaseModel, Field
from schemas import STATISTICS, {{ 'TOPICS, ' if cookiecutter._marks }}Alarm, Reading, Statistics

from shared.schemas import Command
from shared.service import BaseService, run_service
from shared.state import StateFile


class Totals(BaseModel):
    """State that outlives a restart."""

    readings: int = Field(default=0, ge=0)
    highest: float | None = Field(default=None, allow_inf_nan=False)


class {{ cookiecutter.__class }}(BaseService[ServiceSettings]):
    name = "{{ cookiecutter.service_slug }}"
{% if cookiecutter._marks %}
    topics = TOPICS
{% endif %}

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
        self._state = StateFile(settings.data_dir / "state.json", self.logger)
        self._totals = Totals()

    async def run(self) -> None:
        self._totals = self._state.load(Totals)
        self.on_command(STATISTICS, self._on_statistics)
        self.mqtt.subscribe(
            f"{self.settings.topic_prefix}/{self.settings.source}",
            self._on_reading,
            model=Reading,
            deduplicate=True,
        )
        self.mqtt.connect_background()
        await self.wait_for_shutdown()

    async def _on_reading(self, topic: str, reading: Reading) -> None:
        highest = self._totals.highest
        self._totals = Totals(
            readings=self._totals.readings + 1,
            highest=reading.value if highest is None else max(highest, reading.value),
        )
        # A save waits for the disk, which would block the event loop at every reading otherwise.
        await asyncio.to_thread(self._state.save, self._totals)
        limit = self.settings.alarm_above
        if reading.value > limit:
            self.logger.warning("alarm_raised", source=topic, value=reading.value, limit=limit)
            await self.publish("alarm", Alarm(source=topic, value=reading.value, limit=limit))
        statistics = Statistics(**self._totals.model_dump())
        await self.publish("statistics", statistics, retain=True)

    def _on_statistics(self, _command: Command) -> Statistics:
        return Statistics(**self._totals.model_dump())


if __name__ == "__main__":
    raise SystemExit(run_service({{ cookiecutter.__class }}))
