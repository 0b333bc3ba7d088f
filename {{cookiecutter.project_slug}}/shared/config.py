"""Settings of all services, from environment variables, `.env` and the defaults below."""

import re
import ssl
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, override

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    AliasChoices,
{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}
    AnyHttpUrl,
{% endif %}
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from shared.redaction import hide_secrets

_ROOT = Path(__file__).resolve().parents[1]


def _split(value: object) -> object:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _host_name(value: str) -> str:
    try:
        # Resolving a bad host name raises UnicodeError, which would end the network thread.
        value.encode("idna")
        is_valid = not re.search(r"[\s/@\[]", value) and value.count(":") != 1
    except UnicodeError:
        is_valid = False
    if not is_valid:
        message = "must be a host name or an IP address, such as mqtt.local. The port is MQTT_PORT"
        raise ValueError(message)
    return value


def _topic_prefix(value: str) -> str:
    if not all(re.fullmatch(r"[^+#\s\0]+", level) for level in value.split("/")):
        message = "must be levels separated by /, such as home/services, without +, # and blanks"
        raise ValueError(message)
    return value


{% if cookiecutter.include_home_assistant %}
def _discovery_prefix(value: str) -> str:
    return value and _topic_prefix(value)


{% endif %}
def _one_line(value: SecretStr) -> SecretStr:
    if re.search(r"[\r\n]", value.get_secret_value()):
        message = "must not contain a line end"
        raise ValueError(message)
    return value


{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}
def _http_address(value: str) -> str:
    AnyHttpUrl(value)
    return value


{% endif %}
def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _existing_file(value: Path, info: ValidationInfo) -> Path:
    if not value.is_file():
        # The working directory of a container in development is that of its service.
        value = _ROOT / value
    is_used = info.data.get("mqtt_tls") or not (info.field_name or "").startswith("mqtt_tls_")
    if is_used and not value.is_file():
        message = f"{value} does not exist. In a container, use the path inside the container"
        raise ValueError(message)
    return value


Secret = Annotated[SecretStr, AfterValidator(_one_line)]

ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
"""A file that is read, by its path or by its path below the root of the repository."""

type CommaSeparated[T] = Annotated[list[T], NoDecode, BeforeValidator(_split)]
"""A list written as `a, b, c` in the environment: `allowed_ids: CommaSeparated[int] = []`."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["auto", "console", "json"]


SETTING_GROUPS = {
    "mqtt": "MQTT",
    "log": "Logging",
{% if cookiecutter.include_home_assistant %}
    "ha": "Home Assistant",
{% endif %}
{% if cookiecutter.include_influxdb %}
    "influx": "InfluxDB",
{% endif %}
}
"""Headings of `.env.example`, by the first word of a setting's name."""


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


class _SecretFileSource(PydanticBaseSettingsSource):
    """Reads a secret `NAME` from the file that `NAME_FILE` names, such as a Docker secret."""

    def __init__(
        self, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource
    ) -> None:
        super().__init__(settings_cls)
        self._variables = ChainMap(*(dict(getattr(source, "env_vars", {})) for source in sources))

    @override
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = variable_of(field_name, field)
        path = self._variables.get(f"{name}_file".lower())
        kinds = {getattr(kind, "__origin__", kind) for kind in get_args(field.annotation)}
        is_secret = field.annotation is SecretStr or kinds == {SecretStr, NoneType}
        if not is_secret or not path:
            return None, name, False
        try:
            content = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            message = f"{name.upper()}_FILE: cannot read {path}: {type(error).__name__}"
            raise SettingsError(message) from error
        return content.removesuffix("\n").removesuffix("\r"), name, False

    @override
    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields.items()
        values = [self.get_field_value(field, field_name) for field_name, field in fields]
        return {name: value for value, name, _ in values if value is not None}


class Settings(BaseSettings):
    """Settings of all services. A service adds its own fields in a subclass.

    An empty variable counts as not set: `.env` applies, then the default.
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
        # Built at first use, because the documents of many services need the fields only.
        defer_build=True,
        dotenv_filtering="only_existing",
    )

    topic_prefix: Annotated[str, AfterValidator(_topic_prefix)] = Field(
        default="{{ cookiecutter.topic_prefix }}", description="First level of every MQTT topic"
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
    mqtt_transport: Literal["tcp", "websockets"] = Field(
        default="tcp", description="tcp or websockets"
    )
    mqtt_websocket_path: str = Field(default="/mqtt", description="Path of the broker's WebSocket")
    mqtt_client_id: str = Field(
        default="",
        description="Client id, with {service} for the name of the service. Empty uses a random id",
    )
    mqtt_username: str = Field(
        default="services",
        description="User name for the broker. The default is only sent with a password",
    )
    mqtt_password: Secret = Field(
        default=SecretStr(""),
        description="Password for the broker, random in a first .env. Empty connects anonymously",
    )
    mqtt_tls: bool = Field(default=False, description="Encrypt the connection to the broker")
    mqtt_tls_ca_file: ExistingFile | None = Field(
        default=None,
        description="CA certificate of the broker. Empty uses the CA certificates of the system",
    )
    mqtt_tls_cert_file: ExistingFile | None = Field(
        default=None, description="Client certificate, for brokers that require one"
    )
    mqtt_tls_key_file: ExistingFile | None = Field(
        default=None, description="Key of the client certificate. Empty if that file holds the key"
    )
    mqtt_keepalive_seconds: int = Field(
        default=30, ge=5, le=65535, description="MQTT keep-alive interval, in seconds"
    )
    mqtt_publish_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Timeout for the acknowledgement of the broker, in seconds"
    )
    mqtt_max_queued_messages: int = Field(
        default=1000, ge=1, description="Limit of messages that wait for an acknowledgement"
    )
    mqtt_max_payload_bytes: int = Field(
        default=2**20, ge=1, description="Limit of a received payload, in bytes"
    )
{% if cookiecutter.include_home_assistant %}

    ha_url: Annotated[str, AfterValidator(_http_address)] = Field(
        default="http://homeassistant.local:8123", description="URL of Home Assistant"
    )
    ha_ca_file: ExistingFile | None = Field(
        default=None, description="CA certificate of Home Assistant. Empty uses those of the system"
    )
    ha_token: Secret = Field(
        default=SecretStr(""), description="Long-lived access token of Home Assistant"
    )
    ha_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Timeout for a request, in seconds"
    )
    ha_discovery_prefix: Annotated[str, AfterValidator(_discovery_prefix)] = Field(
        default="",
        description="Prefix of MQTT discovery, usually homeassistant. Empty announces nothing",
    )
{% endif %}
{% if cookiecutter.include_influxdb %}

    influx_url: Annotated[str, AfterValidator(_http_address)] = Field(
        default="http://influxdb:8086", description="URL of InfluxDB"
    )
    influx_ca_file: ExistingFile | None = Field(
        default=None, description="CA certificate of InfluxDB. Empty uses those of the system"
    )
    influx_token: Secret = Field(
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

    instance: int | None = Field(
        default=None,
        ge=1,
        description="Number of this replica. Empty uses the first MQTT session that is free",
    )
    data_dir: Path = Field(
        default=Path("/app/data"), description="Directory for state and the MQTT session"
    )
    service_version: str = Field(
        default="", description="Version in the heartbeat. A deployment sets it to its commit"
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
    health_path: Path = Field(
        default=Path("/tmp/healthcheck"),  # noqa: S108 - a container has a /tmp of its own
        description="Health file of the process, in memory. Never in a volume, which outlives it",
    )
    health_watchdog: bool = Field(
        default=True,
        description="End the process when its event loop is blocked for HEALTH_MAX_AGE_SECONDS",
    )
    shutdown_timeout_seconds: float = Field(
        default=8.0,
        gt=0,
        description="Timeout for an orderly stop, in seconds. Docker kills after 10",
    )

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
        files = _SecretFileSource(settings_cls, env_settings, dotenv)
        return init_settings, files, env_settings, dotenv, file_secret_settings


def load_settings[S: Settings](settings_class: type[S]) -> S:
    """Read the settings, and redact their secrets in the log from now on.

    Raises ConfigurationError, which contains no value but a path or an address.
    """
    try:
        settings = settings_class()
    except ValidationError as error:
        problems = [
            f"{_variable(settings_class, problem['loc'])}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False, include_context=False)
        ]
    except SettingsError as error:
        problems = [str(error)]
    except (OSError, UnicodeDecodeError) as error:
        problems = [f".env: cannot be read: {type(error).__name__}"]
    else:
        values = (getattr(settings, name) for name in settings_class.model_fields)
        hide_secrets(value.get_secret_value() for value in values if isinstance(value, SecretStr))
        return settings
    # Raise outside the handlers, because the original errors contain values.
    raise ConfigurationError(problems)


def _variable(settings_class: type[Settings], location: tuple[int | str, ...]) -> str:
    # A default that is not valid is reported by the name of its field, not by its alias.
    fields = settings_class.model_fields.items()
    variables = {name: variable_of(name, field) for name, field in fields}
    return ".".join(variables.get(str(part), str(part)) for part in location).upper()


def variable_of(name: str, field: FieldInfo) -> str:
    """Return the environment variable of a field, the first one if it has several."""
    alias = field.validation_alias
    return str(alias.choices[0] if isinstance(alias, AliasChoices) else alias or name)


def tls_context(name: str, ca_file: Path | None) -> ssl.SSLContext:
    """Return a TLS context for clients. Raises ConfigurationError for an invalid CA file."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigurationError([f"{name}: {ca_file}: {error}"]) from error
