{% if cookiecutter.service_type == "poller" %}
"""Messages of {{ cookiecutter.service_slug }}."""

from pydantic import Field

from shared.schemas import Message, Topic


class Reading(Message):
    value: float = Field(description="Load of the machine, averaged over one minute")
    round: int = Field(description="Number of the round, counted over restarts")


TOPICS = [
    Topic(
        pattern="{prefix}/{service}/reading",
        payload=Reading,
        description="What the last round has measured",
    ),
]
{% elif cookiecutter.service_type == "subscriber" %}
"""Messages of {{ cookiecutter.service_slug }}."""

from pydantic import Field

from shared.schemas import Message, Topic


class Reading(Message):
    """What is expected of a reading; a message without it becomes a dead letter."""

    value: float


class Alarm(Message):
    source: str = Field(description="Topic of the reading")
    value: float
    limit: float


class Statistics(Message):
    readings: int = Field(description="Readings so far, counted over restarts")
    highest: float | None = Field(default=None, description="Highest value so far")


TOPICS = [
    Topic(
        pattern="{prefix}/{service}/alarm",
        payload=Alarm,
        description="A reading above the limit",
    ),
    Topic(
        pattern="{prefix}/{service}/statistics",
        payload=Statistics,
        retain=True,
        description="Number of readings and the highest value",
    ),
]
{% else %}
"""What the HTTP interface of {{ cookiecutter.service_slug }} takes and returns."""

from typing import Any

from pydantic import BaseModel, Field


class Status(BaseModel):
    """State of this service, as in its heartbeat."""

    service: str
    status: str = Field(description="online or degraded")
    reasons: list[str] = Field(description="What is wrong")


class CommandRequest(BaseModel):
    """An order to another service."""

    command: str = Field(min_length=1, examples=["refresh"])
    arguments: dict[str, Any] = Field(default_factory=dict, description="Further fields")


class CommandAnswer(BaseModel):
    """What the other service has answered."""

    service: str
    status: str = Field(description="ok or error")
    result: dict[str, Any]
{% endif %}
