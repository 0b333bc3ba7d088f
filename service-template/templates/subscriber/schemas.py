"""Messages of {{ cookiecutter.service_slug }}."""

{% if cookiecutter._marks %}
from typing import Annotated

{% endif %}
from pydantic import Field

{% if cookiecutter._marks %}
from shared.discovery import Sensor
{% endif %}
from shared.schemas import Command, CommandSpec, Message, Topic


class Reading(Message):
    """The field that a reading must have. A message without it becomes a dead letter."""

    value: float


class Alarm(Message):
    source: str = Field(description="Topic of the reading")
    value: float
    limit: float


class Statistics(Message):
{% if cookiecutter._marks %}
    readings: Annotated[int, Sensor(icon="mdi:counter", state_class="total_increasing")] = Field(
        description="Readings so far, counted over restarts"
    )
    highest: Annotated[float | None, Sensor(icon="mdi:arrow-collapse-up")] = Field(
        default=None, description="Highest value so far"
    )
{% else %}
    readings: int = Field(description="Readings so far, counted over restarts")
    highest: float | None = Field(default=None, description="Highest value so far")
{% endif %}


STATISTICS = CommandSpec(
    name="statistics",
    arguments=Command,
    reply=Statistics,
    description="get the statistics",
)
COMMANDS = [STATISTICS]

TOPICS = [
    Topic(
        pattern="{prefix}/+/reading",
        payload=Reading,
        direction="receive",
        description="Reading of any service",
    ),
    Topic(
        pattern="{prefix}/{service}/alarm",
        payload=Alarm,
        description="Reading above the limit",
    ),
    Topic(
        pattern="{prefix}/{service}/statistics",
        payload=Statistics,
        retain=True,
        description="Number of readings and the highest value",
    ),
]
