"""Shows the state of all other services, and reports each service that needs attention."""

from pydantic import BaseModel, Field

from shared.config import Settings
from shared.schemas import Command, CommandSpec, Message, Topic
from shared.service import BaseService


class OverviewSettings(Settings):
    overview_interval_seconds: float = Field(default=10.0, gt=0, description="Time between cycles")
    overview_max_age_seconds: float = Field(
        default=180.0, gt=0, description="Age of a heartbeat that needs attention"
    )


class Entry(BaseModel):
    status: str = Field(description="online, degraded, offline, silent or unknown")
    reasons: list[str] = Field(default_factory=list)


class Overview(Message):
    services: dict[str, Entry]


class Attention(Message):
    name: str
    status: str


LIST = CommandSpec(name="list", arguments=Command, reply=Overview, description="list all services")
COMMANDS = [LIST]
TOPICS = [
    Topic(
        pattern="{prefix}/{service}/services",
        payload=Overview,
        retain=True,
        description="State of all services, sent when it changes",
    ),
    Topic(
        pattern="{prefix}/{service}/attention",
        payload=Attention,
        description="A service that is no longer online",
    ),
]


class OverviewService(BaseService[OverviewSettings]):
    name = "overview"

    async def run(self) -> None:
        self._before: dict[str, str] = {}
        self.service_statuses()
        self.on_command(LIST, lambda _command: self.overview())
        self.mqtt.connect_background()
        await self.every(self.settings.overview_interval_seconds, self.report)

    async def report(self) -> None:
        overview = self.overview()
        await self.publish_if_changed("services", overview, retain=True)
        for name, entry in overview.services.items():
            if entry.status != "online" and self._before.get(name) == "online":
                await self.publish("attention", Attention(name=name, status=entry.status))
            self._before[name] = entry.status

    def overview(self) -> Overview:
        services = {}
        for name, found in self.service_statuses().items():
            is_silent = (found.heartbeat_age_seconds or 0) > self.settings.overview_max_age_seconds
            is_online = found.status in {"online", "degraded"}
            reasons = found.heartbeat.reasons if found.heartbeat and is_online else []
            status = "silent" if is_online and is_silent else found.status
            services[name] = Entry(status=status, reasons=reasons)
        return Overview(services={name: services[name] for name in services if name != self.name})
