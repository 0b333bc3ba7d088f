"""Settings of {{ cookiecutter.service_slug }}, on top of the shared ones."""

from pydantic import Field

from shared.config import Settings


class ServiceSettings(Settings):
{% if cookiecutter.service_type == "poller" %}
    poll_interval_seconds: float = Field(
        default=30.0,
        gt=0,
        validation_alias="{{ cookiecutter.__env }}_POLL_INTERVAL_SECONDS",
        description="Time between two rounds, in seconds",
    )
{% elif cookiecutter.service_type == "subscriber" %}
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
{% else %}
    http_host: str = Field(
        default="127.0.0.1",
        validation_alias="{{ cookiecutter.__env }}_HTTP_HOST",
        description="Address to listen on; 0.0.0.0 inside a container",
    )
    http_port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        validation_alias="{{ cookiecutter.__env }}_HTTP_PORT",
        description="Port to listen on",
    )
    command_timeout_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias="{{ cookiecutter.__env }}_COMMAND_TIMEOUT_SECONDS",
        description="Longest wait for another service's answer, in seconds",
    )
{% endif %}
