"""Settings of {{ cookiecutter.service_slug }}, on top of the shared ones."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, AnyHttpUrl, Field, SecretStr, ValidationInfo, field_validator

from shared.config import CommaSeparated, Secret, Settings


def _http_address(value: SecretStr) -> SecretStr:
    if value.get_secret_value():
        AnyHttpUrl(value.get_secret_value())
    return value


class ServiceSettings(Settings):
    http_host: str = Field(
        default="127.0.0.1",
        validation_alias="{{ cookiecutter.__env }}_HTTP_HOST",
        description="Address to listen on, 0.0.0.0 inside a container",
    )
    http_port: int = Field(
        default=8090,
        ge=0,
        le=65535,
        validation_alias="{{ cookiecutter.__env }}_HTTP_PORT",
        description="Port of the page on this machine",
    )
    http_allowed_hosts: CommaSeparated[str] = Field(
        default=["localhost", "127.0.0.1"],
        validation_alias="{{ cookiecutter.__env }}_HTTP_ALLOWED_HOSTS",
        description="Host names of this service for its clients, besides its own name",
    )
    password: Secret = Field(
        default=SecretStr(""),
        validation_alias="{{ cookiecutter.__env }}_PASSWORD",
        description="Password of the page, random in a first .env. May be empty on 127.0.0.1 only",
    )
    max_dead_letters: int = Field(
        default=10_000,
        ge=1,
        validation_alias="{{ cookiecutter.__env }}_MAX_DEAD_LETTERS",
        description="Limit of kept dead letters. The oldest ones are deleted",
    )
    max_dead_letter_days: float = Field(
        default=90.0,
        gt=0,
        validation_alias="{{ cookiecutter.__env }}_MAX_DEAD_LETTER_DAYS",
        description="Age at which a dead letter is deleted, in days",
    )
    command_timeout_seconds: float = Field(
        default=5.0,
        gt=0,
        validation_alias="{{ cookiecutter.__env }}_COMMAND_TIMEOUT_SECONDS",
        description="Longest wait for the reply of another service, in seconds",
    )
    alert_url: Annotated[Secret, AfterValidator(_http_address)] = Field(
        default=SecretStr(""),
        validation_alias="{{ cookiecutter.__env }}_ALERT_URL",
        description="URL that gets alerts as JSON with title and message. Empty sends none",
    )
    alert_after_seconds: float = Field(
        default=120.0,
        ge=0,
        validation_alias="{{ cookiecutter.__env }}_ALERT_AFTER_SECONDS",
        description="Time that a problem must last before an alert, in seconds",
    )

    @field_validator("password")
    @classmethod
    def _protects_the_network(cls, password: SecretStr, info: ValidationInfo) -> SecretStr:
        host = info.data.get("http_host", "")
        if not password.get_secret_value() and not _is_loopback(host):
            message = f"must be set in .env to listen on {host}"
            raise ValueError(message)
        if not password.get_secret_value().isascii():
            message = "must be ASCII, as HTTP Basic sends it"
            raise ValueError(message)
        return password


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
