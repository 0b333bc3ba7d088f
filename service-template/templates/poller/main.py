"""Measures the load of the processors on an interval and publishes it."""

import os

from config import ServiceSettings
from pydantic import BaseModel, Field
from schemas import REFRESH, {{ 'TOPICS, ' if cookiecutter._marks }}Reading

from shared.schemas import Command
from shared.service import BaseService, run_service
from shared.state import StateFile


class Progress(BaseModel):
    """State that outlives a restart."""

    cycle: int = Field(default=0, ge=0)


class {{ cookiecutter.__class }}(BaseService[ServiceSettings]):
    name = "{{ cookiecutter.service_slug }}"
{% if cookiecutter._marks %}
    topics = TOPICS
{% endif %}

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
        self._state = StateFile(settings.data_dir / "state.json", self.logger)
        self._progress = Progress()

    async def run(self) -> None:
        self._progress = self._state.load(Progress)
        self.on_command(REFRESH, self._on_refresh{{ ', button="Refresh"' if cookiecutter._marks }})
        self.mqtt.connect_background()
        await self.every(self.settings.poll_interval_seconds, self.measure)

    async def measure(self) -> Reading:
        """Take one reading and publish it."""
        self._progress.cycle += 1
        load = 100 * os.getloadavg()[0] / (os.cpu_count() or 1)
        reading = Reading(value=round(load, 1), cycle=self._progress.cycle)
        await self.publish("reading", reading)
        self._state.save(self._progress)
        self.logger.info("reading_published", value=reading.value, cycle=reading.cycle)
        return reading

    async def _on_refresh(self, _command: Command) -> Reading:
        return await self.measure()


if __name__ == "__main__":
    raise SystemExit(run_service({{ cookiecutter.__class }}))
