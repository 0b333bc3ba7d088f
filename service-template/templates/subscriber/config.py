"""Settings of {{ cookiecutter.service_slug }}, on top of the shared ones."""

from pydantic import Field

from shared.config import Settings


class ServiceSettings(Settings):
    source: str = Field(
        default="+/reading",
        validation_alias="{{ cookiecutter.__env }}_SOURCE",
        description="Topic filter of the readings, below the topic prefix",
    )
    alarm_above: float = Field(
        default=100.0,
        validation_alias="{{ cookiecutter.__env }}_ALARM_ABOVE",
        description="Readings above this value raise an alarm",
    )
