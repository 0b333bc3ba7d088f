"""Settings of {{ cookiecutter.service_slug }}, on top of the shared ones."""

from pydantic import Field

from shared.config import Settings


class ServiceSettings(Settings):
    source: str = Field(
        default="+/reading",
        validation_alias="{{ cookiecutter.__env }}_SOURCE",
        description="Where readings come from, below the topic prefix",
    )
    alarm_above: float = Field(
        default=100.0,
        validation_alias="{{ cookiecutter.__env }}_ALARM_ABOVE",
        description="Reading that raises an alarm",
    )
