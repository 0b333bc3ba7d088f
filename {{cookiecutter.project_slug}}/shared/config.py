"""Settings of every service: environment variables, then `.env`, then the defaults below."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, override

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}
    AnyHttpUrl,
{% endif %}
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)


def _split(value: object) -> object:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _host_name(value: str) -> str:
    # Else looking it up raises what ends the network thread of the MQTT client.
    try:
        value.encode("idna")
    except UnicodeError as error:
        message = "this cannot be the name of a host"
        raise ValueError(message) from error
    return value


{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}
def _http_address(value: str) -> str:
    try:
        AnyHttpUrl(value)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from error
    return value


{% endif %}
def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


type CommaSeparated[T] = Annotated[list[T], NoDecode, BeforeValidator(_split)]
"""A list written as `a, b, c` in the environment: `allowed_ids: CommaSeparated[int] = []`."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["auto", "console", "json"]


class ConfigurationError(Exception):
    """The settings are not usable; `problems` holds one readable line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _LiteralDotEnvSource(DotEnvSettingsSource):
    """Reads `.env` as Docker Compose reads single-quoted values: `${...}` is plain text."""

    @override
    def _read_env_file(self, file_path: Path) -> Mapping[str, str | None]:
        values = dotenv_values(file_path, encoding=self.env_file_encoding, interpolate=False)
        return {
            name.lower(): value
            for name, value in values.items()
            if value or not self.env_ignore_empty
        }


class Settings(BaseSettings):
    """What all services share; a service extends it with its own fields.

    A variable that is set but empty counts as not set, so the default holds.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        # One .env serves all services: each ignores what belongs to the others.
        extra="ignore",
        hide_input_in_errors=True,
        # A field whose variable has another name (`validation_alias`) still has its own in code.
        validate_by_name=True,
        validate_by_alias=True,
        dotenv_filtering="only_existing",
    )

    topic_prefix: str = Field(
        default="{{ cookiecutter.topic_prefix }}",
        pattern=r"^[^+#/\s\x00]+(/[^+#/\s\x00]+)*$",
        description="First level of every MQTT topic",
    )

    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = Field(
        default="INFO", description="DEBUG, INFO, WARNING, ERROR or CRITICAL"
    )
    log_format: LogFormat = Field(
        default="auto",
        description="console or json; auto is console on a terminal and json otherwise",
    )
    debug_service: str = Field(
        default="", description="Name of the service that waits for a debugger when it starts"
    )

    mqtt_host: Annotated[str, AfterValidator(_host_name)] = Field(
        default="mqtt", description="Host name or address of the broker"
    )
    mqtt_port: int = Field(
        default=1883, ge=1, le=65535, description="Port of the broker, with TLS mostly 8883"
    )
    mqtt_username: str = Field(
        default="services", description="User name, sent when there is a password"
    )
    mqtt_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password, random in a first .env; empty connects without user name",
    )
    mqtt_tls: bool = Field(default=False, description="true encrypts the connection to the broker")
    mqtt_tls_ca_file: Path | None = Field(
        default=None,
        description="CA certificate that signed the broker's; empty trusts the system's",
    )
    mqtt_keepalive_seconds: int = Field(
        default=30, ge=5, le=65535, description="Longest silence before a ping, in seconds"
    )
    mqtt_publish_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Longest wait for the broker's acknowledgement, in seconds"
    )
    mqtt_max_queued_messages: int = Field(
        default=1000, ge=1, description="Messages held in memory, in each direction"
    )
{% if cookiecutter.include_home_assistant %}

    ha_url: Annotated[str, AfterValidator(_http_address)] = Field(
        default="http://homeassistant.local:8123", description="Address of Home Assistant"
    )
    ha_token: SecretStr = Field(
        default=SecretStr(""), description="Long-lived access token of Home Assistant"
    )
    ha_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Longest wait for one answer, in seconds"
    )
{% endif %}
{% if cookiecutter.include_influxdb %}

    influx_url: Annotated[str, AfterValidator(_http_address)] = Field(
        default="http://influxdb:8086", description="Address of InfluxDB"
    )
    influx_token: SecretStr = Field(
        default=SecretStr(""),
        description="API token of InfluxDB, random in a first .env; its container starts with it",
    )
    influx_org: str = Field(
        default="{{ cookiecutter.project_slug }}",
        description="Organization",
    )
    influx_bucket: str = Field(
        default="{{ cookiecutter.project_slug }}",
        description="Bucket that is read and written",
    )
    influx_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Longest wait for one whole answer, in seconds"
    )
{% endif %}

    data_dir: Path = Field(
        default=Path("/app/data"), description="Folder for state and the health file"
    )
    heartbeat_interval_seconds: float = Field(
        default=60.0, ge=0, description="Time between two heartbeats, in seconds; 0 sends none"
    )
    command_max_age_seconds: float = Field(
        default=300.0,
        ge=0,
        description="Age of a command that is too late to be run, in seconds; 0 runs all",
    )
    health_max_age_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Age of the last sign of health that makes a service unhealthy, in seconds",
    )
    shutdown_timeout_seconds: float = Field(
        default=8.0,
        gt=0,
        description="Longest orderly stop, in seconds; Docker kills after 10",
    )

    @field_validator("mqtt_tls_ca_file")
    @classmethod
    def _is_there_when_needed(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("mqtt_tls") and not value.is_file():
            message = f"there is no file {value}; in a container its path is the one inside"
            raise ValueError(message)
        return value

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        env_file = getattr(dotenv_settings, "env_file", None)
        dotenv = _LiteralDotEnvSource(settings_cls, env_file=env_file)
        for source in (env_settings, dotenv):
            # Its own name is for code alone: `SOURCE` in the environment may be anybody's.
            source.config = {**source.config, "validate_by_name": False}
        return init_settings, env_settings, dotenv, file_secret_settings


def load_settings[S: Settings](settings_class: type[S]) -> S:
    """Read the settings; raises ConfigurationError, which never holds a value."""
    try:
        return settings_class()
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False)
        ]
    except SettingsError as error:
        problems = [str(error)]
    except (OSError, UnicodeDecodeError) as error:
        problems = [f".env: cannot be read: {type(error).__name__}"]
    # Raised here, and not inside the handlers, so that no value travels with the traceback.
    raise ConfigurationError(problems)
