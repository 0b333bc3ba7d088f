"""Messages of {{ cookiecutter.service_slug }}."""

from pydantic import Field

from shared.schemas import Command, CommandSpec, Message, Topic


class Reading(Message):
    value: float = Field(description="Load of the machine, averaged over one minute")
    round: int = Field(description="Number of the cycle, counted over restarts")


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
        description="Reading of the last cycle",
    ),
]
