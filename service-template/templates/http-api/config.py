"""Settings of {{ cookiecutter.service_slug }}, on top of the shared ones."""

from pydantic import Field

from shared.config import CommaSeparated, Settings


class ServiceSettings(Settings):
    http_host: str = Field(
        default="127.0.0.1",
        validation_alias="{{ cookiecutter.__env }}_HTTP_HOST",
        description="Address to listen on, 0.0.0.0 inside a container",
    )
    http_port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        validation_alias="{{ cookiecutter.__env }}_HTTP_PORT",
        description="Port to listen on, 8000 inside a container",
    )
    http_allowed_hosts: CommaSeparated[str] = Field(
        default=["localhost", "127.0.0.1"],
        validation_alias="{{ cookiecutter.__env }}_HTTP_ALLOWED_HOSTS",
        description="Host names of this service for its clients, besides its own name",
    )
    command_timeout_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias="{{ cookiecutter.__env }}_COMMAND_TIMEOUT_SECONDS",
        description="Longest wait for the reply of another service, in seconds",
    )
