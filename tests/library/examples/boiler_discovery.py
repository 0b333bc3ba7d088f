"""A service with every kind of mark."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from shared.config import Settings
from shared.discovery import BinarySensor, Number, Select, Sensor, Switch, Text
from shared.schemas import Command, Message, Topic
from shared.service import BaseService


class Phase(StrEnum):
    HEATING = "heating"
    IDLE = "idle"


class Reading(Message):
    power: Annotated[float, Sensor(unit="W", device_class="power", state_class="measurement")]
    window_open: Annotated[bool, BinarySensor(device_class="window", expire_after=90)]
    phase: Annotated[Phase, Sensor(device_class="enum", name="Burner")]
    fuel: Annotated[Literal["gas", "wood"], Sensor()] = "gas"
    note: Annotated[str | None, Sensor(icon="mdi:note")] = None
    serviced_at: Annotated[
        datetime | None,
        Sensor(device_class="timestamp", entity_category="diagnostic"),
    ] = Field(default=None, serialization_alias="servicedAt")
    unmarked: int = 0


class State(Message):
    pump: Annotated[bool, Switch(command="set_pump", icon="mdi:pump")] = False
    setpoint: Annotated[
        float,
        Number(
            command="set_setpoint", min=5, max=30, step=0.5, unit="°C", device_class="temperature"
        ),
    ] = 20.0
    mode: Annotated[Literal["eco", "boost"] | None, Select(command="set_mode")] = None
    label: Annotated[str | None, Text(command="set_label", max=20, pattern="[a-z ]*")] = None


class SetPump(BaseModel):
    pump: bool


class SetSetpoint(BaseModel):
    setpoint: float


class SetMode(BaseModel):
    mode: Literal["eco", "boost"]


class SetLabel(BaseModel):
    label: str


TOPICS = [
    Topic(pattern="{prefix}/{service}/reading", payload=Reading, description="Reading"),
    Topic(pattern="{prefix}/{service}/state", payload=State, retain=True, description="State"),
]


class Boiler(BaseService[Settings]):
    name = "boiler"
    topics = TOPICS

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.state = State()
        self.reading = Reading(power=1.5, window_open=False, phase=Phase.HEATING)

    async def run(self) -> None:
        self.on_command("refresh", self.refresh, button="Refresh")
        self.on_command("wipe", self.refresh)
        self.on_command("set_pump", self.change, model=SetPump)
        self.on_command("set_setpoint", self.change, model=SetSetpoint)
        self.on_command("set_mode", self.change, model=SetMode)
        self.on_command("set_label", self.change, model=SetLabel)
        self.mqtt.connect_background()
        await self.mqtt.wait_connected()
        await self.publish("state", self.state, retain=True)
        await self.every(1.0, self.publish_reading)

    async def publish_reading(self) -> None:
        await self.publish("reading", self.reading)

    async def refresh(self, _command: Command) -> None:
        self.reading.power += 1
        await self.publish_reading()

    async def change(self, change: BaseModel) -> dict[str, Any]:
        self.state = self.state.model_copy(update=change.model_dump())
        await self.publish("state", self.state, retain=True)
        return change.model_dump()
