"""Settings of {{ cookiecutter.service_slug }}, on top of the shared ones."""

from pydantic import Field

from shared.config import Settings


class ServiceSettings(Settings):
    poll_interval_seconds: float = Field(
        default=30.0,
        gt=0,
        validation_alias="{{ cookiecutter.__env }}_POLL_INTERVAL_SECONDS",
        description="Time between two cycles, in seconds",
    )
