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
{% if cookiecutter._marks %}
    value: Annotated[float, Sensor(name="CPU load", unit="%", state_class="measurement")] = Field(
        description="Load of the processors over one minute. Above 100, processes wait"
    )
    cycle: Annotated[int, Sensor(icon="mdi:counter", entity_category="diagnostic")] = Field(
        description="Number of the reading, counted over restarts"
    )
{% else %}
    value: float = Field(
        description="Load of the processors over one minute. Above 100, processes wait",
        json_schema_extra={"unit": "%"},
    )
    cycle: int = Field(description="Number of the reading, counted over restarts")
{% endif %}


REFRESH = CommandSpec(
    name="refresh",
    arguments=Command,
    reply=Reading,
    description="take a reading at once",
)
COMMANDS = [REFRESH]

TOPICS = [
    Topic(
        pattern="{prefix}/{service}/reading",
        payload=Reading,
        description="Last reading",
    ),
]
