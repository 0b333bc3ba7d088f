"""Fetches the solar forecast over HTTP and publishes it when it changes."""

from pydantic import BaseModel, Field

from shared.api_client import APIClient
from shared.config import Settings
from shared.schemas import Command, CommandSpec, Message, Topic
from shared.service import BaseService


class ForecastSettings(Settings):
    forecast_url: str = Field(default="http://forecast", description="URL of the forecast")
    forecast_interval_seconds: float = Field(default=900.0, gt=0, description="Time between cycles")


class Estimate(BaseModel):
    """Response of the server."""

    hourly_kwh: list[float] = Field(min_length=1)


class Forecast(Message):
    today_kwh: float = Field(json_schema_extra={"unit": "kWh"})
    best_hour: int = Field(description="Hour of the day with the highest yield")


REFRESH = CommandSpec(
    name="refresh", arguments=Command, reply=Forecast, description="fetch the forecast at once"
)
COMMANDS = [REFRESH]
TOPICS = [
    Topic(
        pattern="{prefix}/{service}/updated",
        payload=Forecast,
        retain=True,
        description="Forecast for today",
    )
]


class ForecastService(BaseService[ForecastSettings]):
    name = "forecast"

    async def run(self) -> None:
        self._api = self.add_client(APIClient(self.settings.forecast_url, logger=self.logger))
        self.on_command(REFRESH, self.refresh)
        self.mqtt.connect_background()
        await self.every(self.settings.forecast_interval_seconds, self.refresh)

    async def refresh(self, _command: Command | None = None) -> Forecast:
        hours = Estimate.model_validate(await self._api.get("/today")).hourly_kwh
        forecast = Forecast(today_kwh=sum(hours), best_hour=hours.index(max(hours)))
        await self.publish_if_changed(
            "updated", forecast, delta=0.1, at_least_every=3600, retain=True
        )
        return forecast
