"""Charges a car with solar power: listens to devices and switches a Home Assistant helper."""

from typing import Literal

from pydantic import BaseModel, Field

from shared.config import Settings
from shared.schemas import CommandSpec, Message, Topic
from shared.service import BaseService
from shared.state import StateFile


class ChargerSettings(Settings):
    charger_meter: str = Field(
        default="shellies/meter", description="Topic of the meter, a Shelly of the first generation"
    )
    charger_car: str = Field(
        default="zigbee2mqtt/car", description="Topic of the sensor of the car"
    )
    charger_switch: str = Field(
        default="input_boolean.charge_car", description="Helper in Home Assistant"
    )
    charger_interval_seconds: float = Field(default=30.0, gt=0, description="Time between cycles")


class Charge(BaseModel):
    mode: Literal["solar", "always", "never"]
    min_surplus_watts: float = Field(default=1400.0, ge=0, json_schema_extra={"unit": "W"})


class Charging(Message):
    mode: str
    is_charging: bool
    surplus_watts: float = Field(json_schema_extra={"unit": "W"})


class Forecast(BaseModel):
    today_kwh: float


class Goal(BaseModel):
    """State that survives a restart."""

    mode: str = "solar"
    min_surplus_watts: float = 1400.0


CHARGE = CommandSpec(
    name="charge", arguments=Charge, reply=Charging, description="choose when to charge"
)
COMMANDS = [CHARGE]
TOPICS = [
    Topic(
        pattern="{prefix}/forecast/updated",
        payload=Forecast,
        direction="receive",
        description="Forecast for today",
    ),
    Topic(
        pattern="{prefix}/{service}/charging",
        payload=Charging,
        retain=True,
        description="Whether the car is charged",
    ),
]


class ChargerService(BaseService[ChargerSettings]):
    name = "charger"

    async def run(self) -> None:
        self._state = StateFile(self.settings.data_dir / "state.json", self.logger)
        self._goal = self._state.load(Goal)
        self._surplus_watts = self._today_kwh = 0.0
        self._is_plugged_in = False
        self.on_command(CHARGE, self.charge)
        meter, car = f"{self.settings.charger_meter}/#", f"{self.settings.charger_car}/#"
        self.mqtt.subscribe(meter, self.on_meter, payload_format="auto")
        self.mqtt.subscribe(car, self.on_car, payload_format="auto")
        forecast = f"{self.settings.topic_prefix}/forecast/updated"
        self.mqtt.subscribe(forecast, self.on_forecast, model=Forecast)
        self.mqtt.connect_background()
        await self.every(self.settings.charger_interval_seconds, self.control)

    async def control(self) -> Charging:
        """Switch the charger as the goal and the devices require."""
        has_sun = self._surplus_watts >= self._goal.min_surplus_watts and self._today_kwh > 0
        wanted = self._goal.mode == "always" or (self._goal.mode == "solar" and has_sun)
        is_charging = self._is_plugged_in and wanted
        if is_charging != await self.ha.read_bool(self.settings.charger_switch):
            await self.ha.write_helper(self.settings.charger_switch, is_charging)
        charging = Charging(
            mode=self._goal.mode, is_charging=is_charging, surplus_watts=self._surplus_watts
        )
        await self.publish_if_changed("charging", charging, delta=100, retain=True)
        return charging

    async def charge(self, arguments: Charge) -> Charging:
        self._goal = Goal(**arguments.model_dump())
        self._state.save(self._goal)
        return await self.control()

    def on_meter(self, topic: str, payload: object) -> None:
        if topic.endswith("/power") and isinstance(payload, int | float):
            self._surplus_watts = -payload

    def on_car(self, _topic: str, payload: object) -> None:
        if isinstance(payload, dict) and "contact" in payload:
            self._is_plugged_in = payload["contact"] is True

    def on_forecast(self, _topic: str, forecast: Forecast) -> None:
        self._today_kwh = forecast.today_kwh
