{% if cookiecutter.service_type == "poller" %}
"""{{ cookiecutter.__docstring }}"""

import os

from config import ServiceSettings
from schemas import Reading

from shared.schemas import Command
from shared.service import BaseService, run_service
from shared.state import StateFile


class {{ cookiecutter.__class }}(BaseService[ServiceSettings]):
    name = "{{ cookiecutter.service_slug }}"

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
        self._state = StateFile(settings.data_dir / "state.json", self.logger)
        self._round = 0

    async def run(self) -> None:
        self._round = int(self._state.load().get("round", 0))
        self.on_command("refresh", self._on_refresh)
        self.mqtt.connect_background()
        while True:
            try:
                await self.measure()
            except Exception:
                # The next round may do better, and the age of the last success tells on us.
                self.logger.exception("round_failed")
            else:
                self.touch_healthcheck()
            if await self.wait_for_shutdown(self.settings.poll_interval_seconds):
                return

    async def measure(self) -> Reading:
        """Take one reading and publish it."""
        self._round += 1
        reading = Reading(value=os.getloadavg()[0], round=self._round)
        await self.publish("reading", reading)
        self._state.save({"round": self._round})
        self.logger.info("reading_published", value=reading.value, round=reading.round)
        return reading

    async def _on_refresh(self, _command: Command) -> dict[str, float]:
        reading = await self.measure()
        return {"value": reading.value}


if __name__ == "__main__":
    raise SystemExit(run_service({{ cookiecutter.__class }}))
{% elif cookiecutter.service_type == "subscriber" %}
"""{{ cookiecutter.__docstring }}"""

from typing import Any

from config import ServiceSettings
from schemas import Alarm, Reading, Statistics

from shared.schemas import Command
from shared.service import BaseService, run_service
from shared.state import StateFile


class {{ cookiecutter.__class }}(BaseService[ServiceSettings]):
    name = "{{ cookiecutter.service_slug }}"

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
        self._state = StateFile(settings.data_dir / "state.json", self.logger)
        self._statistics = Statistics(readings=0)

    async def run(self) -> None:
        saved = self._state.load()
        self._statistics = Statistics(
            readings=saved.get("readings", 0), highest=saved.get("highest")
        )
        self.on_command("statistics", self._on_statistics)
        self.mqtt.subscribe(
            f"{self.settings.topic_prefix}/{self.settings.source}",
            self._on_reading,
            model=Reading,
            deduplicate=True,
        )
        self.mqtt.connect_background()
        await self.wait_for_shutdown()

    async def _on_reading(self, topic: str, reading: Reading) -> None:
        highest = self._statistics.highest
        self._statistics = Statistics(
            readings=self._statistics.readings + 1,
            highest=reading.value if highest is None else max(highest, reading.value),
        )
        self._state.save(self._statistics.model_dump(include={"readings", "highest"}))
        limit = self.settings.alarm_above
        if reading.value > limit:
            self.logger.warning("alarm_raised", source=topic, value=reading.value, limit=limit)
            await self.publish("alarm", Alarm(source=topic, value=reading.value, limit=limit))
        await self.publish("statistics", self._statistics, retain=True)

    def _on_statistics(self, _command: Command) -> dict[str, Any]:
        return self._statistics.model_dump(include={"readings", "highest"})


if __name__ == "__main__":
    raise SystemExit(run_service({{ cookiecutter.__class }}))
{% else %}
"""{{ cookiecutter.__docstring }}"""

from api import create_app
from config import ServiceSettings
from server import EmbeddedServer

from shared.service import BaseService, run_service


class {{ cookiecutter.__class }}(BaseService[ServiceSettings]):
    name = "{{ cookiecutter.service_slug }}"

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
        self.server = EmbeddedServer(create_app(self), settings.http_host, settings.http_port)

    async def run(self) -> None:
        self.mqtt.connect_background()
        serving = self.create_task(self.server.serve(), name="http")
        await self.wait_for_shutdown()
        self.server.should_exit = True
        await serving


if __name__ == "__main__":
    raise SystemExit(run_service({{ cookiecutter.__class }}))
{% endif %}
