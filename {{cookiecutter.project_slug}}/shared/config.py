"""Settings of all services, from environment variables, `.env` and the defaults below."""

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
    # Reject bad host names here: resolving one raises UnicodeError, which would end the network
    # thread.
    try:
        value.encode("idna")
    except UnicodeError as error:
        message = "not a valid host name"
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
    """The settings are not valid. `problems` holds one line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _LiteralDotEnvSource(DotEnvSettingsSource):
    """Reads `.env` without interpolation, as Docker Compose reads single-quoted values."""

    @override
    def _read_env_file(self, file_path: Path) -> Mapping[str, str | None]:
        values = dotenv_values(file_path, encoding=self.env_file_encoding, interpolate=False)
        return {
            name.lower(): value
            for name, value in values.items()
            if value or not self.env_ignore_empty
        }


class Settings(BaseSettings):
    """Settings of all services. A service adds its own fields in a subclass.

    A variable that is set but empty gets the default.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        # All services read the same .env, so each ignores the variables of the others.
        extra="ignore",
        hide_input_in_errors=True,
        # Code uses the name of the field, even if `validation_alias` names another variable.
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
        description="console, json or auto: console on a terminal and json otherwise",
    )
    debug_service: str = Field(
        default="", description="Name of the service that waits for a debugger at start"
    )

    mqtt_host: Annotated[str, AfterValidator(_host_name)] = Field(
        default="mqtt", description="Host name or address of the broker"
    )
    mqtt_port: int = Field(
        default=1883, ge=1, le=65535, description="Port of the broker, usually 8883 with TLS"
    )
    mqtt_username: str = Field(
        default="services", description="User name for the broker, only sent with a password"
    )
    mqtt_password: SecretStr = Field(
        default=SecretStr(""),
        description="Password for the broker, random in a first .env. Empty connects anonymously",
    )
    mqtt_tls: bool = Field(default=False, description="Encrypt the connection to the broker")
    mqtt_tls_ca_file: Path | None = Field(
        default=None,
        description="CA certificate of the broker. Empty uses the CA certificates of the system",
    )
    mqtt_keepalive_seconds: int = Field(
        default=30, ge=5, le=65535, description="MQTT keep-alive interval, in seconds"
    )
    mqtt_publish_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Timeout for the acknowledgement of the broker, in seconds"
    )
    mqtt_max_queued_messages: int = Field(
        default=1000, ge=1, description="Limit of messages in memory, in each direction"
    )
{% if cookiecutter.include_home_assistant %}

    ha_url: Annotated[str, AfterValidator(_http_address)] = Field(
        default="http://homeassistant.local:8123", description="URL of Home Assistant"
    )
    ha_token: SecretStr = Field(
        default=SecretStr(""), description="Long-lived access token of Home Assistant"
    )
    ha_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Timeout for a request, in seconds"
    )
{% endif %}
{% if cookiecutter.include_influxdb %}

    influx_url: Annotated[str, AfterValidator(_http_address)] = Field(
        default="http://influxdb:8086", description="URL of InfluxDB"
    )
    influx_token: SecretStr = Field(
        default=SecretStr(""),
        description="API token of InfluxDB, random in a first .env, which sets up its container",
    )
    influx_org: str = Field(
        default="{{ cookiecutter.project_slug }}",
        description="Organization in InfluxDB",
    )
    influx_bucket: str = Field(
        default="{{ cookiecutter.project_slug }}",
        description="Bucket in InfluxDB",
    )
    influx_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Timeout for a request, in seconds"
    )
{% endif %}

    data_dir: Path = Field(
        default=Path("/app/data"), description="Directory for state and the health file"
    )
    heartbeat_interval_seconds: float = Field(
        default=60.0, ge=0, description="Heartbeat interval, in seconds. 0 sends no heartbeats"
    )
    command_max_age_seconds: float = Field(
        default=300.0,
        ge=0,
        description="Reject commands older than this many seconds. 0 accepts any age",
    )
    health_max_age_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Age of a health timestamp that makes a service unhealthy, in seconds",
    )
    shutdown_timeout_seconds: float = Field(
        default=8.0,
        gt=0,
        description="Timeout for an orderly stop, in seconds. Docker kills after 10",
    )

    @field_validator("mqtt_tls_ca_file")
    @classmethod
    def _is_there_when_needed(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("mqtt_tls") and not value.is_file():
            message = f"{value} does not exist. In a container, use the path inside the container"
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
            # Only code may use the name of a field with an alias: `SOURCE` in the environment may
            # belong to another program.
            source.config = {**source.config, "validate_by_name": False}
        return init_settings, env_settings, dotenv, file_secret_settings


def load_settings[S: Settings](settings_class: type[S]) -> S:
    """Read the settings. Raises ConfigurationError, which never contains a value."""
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
    # Raise outside the handlers, because the original errors contain values.
    raise ConfigurationError(problems)
