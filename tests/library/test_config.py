"""Settings: sources, their order, and problems."""

from pathlib import Path

import pytest
from pydantic import AliasChoices, Field, SecretStr

from shared.config import CommaSeparated, ConfigurationError, Secret, Settings, load_settings
from tests.conftest import ROOT


class OwnSettings(Settings):
    allowed_ids: CommaSeparated[int] = Field(default_factory=list)
    rooms: CommaSeparated[str] = Field(default=["hall"])
    pairs: dict[str, int] = Field(default_factory=dict)
    interval_seconds: float = Field(default=30, gt=0, validation_alias="OWN_INTERVAL_SECONDS")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the developer's variables nor their .env reach these tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    monkeypatch.setitem(OwnSettings.model_config, "env_file", ".env")
    monkeypatch.chdir(tmp_path)


def problems_of(settings_class: type[Settings]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(settings_class)
    return caught.value.problems


def test_environment_wins_over_the_file_and_the_file_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("MQTT_HOST='from-file'\nMQTT_PORT='2000'\n", encoding="utf-8")
    monkeypatch.setenv("MQTT_HOST", "from-environment")
    settings = load_settings(Settings)
    assert (settings.mqtt_host, settings.mqtt_port) == ("from-environment", 2000)
    assert settings.log_level == "INFO"


def test_variables_of_other_services_are_ignored() -> None:
    Path(".env").write_text("SOMEBODY_ELSES='1'\nMQTT_HOST='broker'\n", encoding="utf-8")
    assert load_settings(Settings).mqtt_host == "broker"


@pytest.mark.parametrize(
    "password", ["a=b#c", "with space", "pa${HOME}ss$1", 'double"quote', "schlüssel", "back\\slash"]
)
def test_single_quoted_values_are_taken_literally(password: str) -> None:
    Path(".env").write_text(f"MQTT_PASSWORD='{password}'\n", encoding="utf-8")
    assert load_settings(Settings).mqtt_password.get_secret_value() == password


def test_an_empty_value_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("MQTT_PORT=''\n", encoding="utf-8")
    monkeypatch.setenv("MQTT_TLS_CA_FILE", "")
    settings = load_settings(Settings)
    assert (settings.mqtt_port, settings.mqtt_tls_ca_file) == (1883, None)


def test_an_env_file_of_an_editor_on_windows_is_read() -> None:
    lines = ["\ufeffexport MQTT_HOST = broker.lan # mine", "\texport  MQTT_PORT='1884'", ""]
    Path(".env").write_bytes("\r\n".join(lines).encode())
    settings = load_settings(Settings)
    assert (settings.mqtt_host, settings.mqtt_port) == ("broker.lan", 1884)


def test_comma_separated_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_IDS", " 1, 2,,3 ,")
    settings = load_settings(OwnSettings)
    assert (settings.allowed_ids, settings.rooms) == ([1, 2, 3], ["hall"])
    assert OwnSettings(allowed_ids=[4]).allowed_ids == [4]


def test_a_variable_may_have_another_name_than_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OwnSettings(interval_seconds=3).interval_seconds == 3
    Path(".env").write_text("OWN_INTERVAL_SECONDS='4'\n", encoding="utf-8")
    assert load_settings(OwnSettings).interval_seconds == 4
    monkeypatch.setenv("OWN_INTERVAL_SECONDS", "0")
    assert problems_of(OwnSettings) == ["OWN_INTERVAL_SECONDS: Input should be greater than 0"]


def test_and_is_then_not_read_from_the_name_of_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("INTERVAL_SECONDS='4'\n", encoding="utf-8")
    monkeypatch.setenv("INTERVAL_SECONDS", "5")
    assert load_settings(OwnSettings).interval_seconds == 30


def test_a_default_that_is_not_valid_has_the_name_of_its_variable() -> None:
    class Unset(Settings):
        limit: int = Field(default=0, gt=0, validation_alias="OWN_LIMIT")

    assert problems_of(Unset) == ["OWN_LIMIT: Input should be greater than 0"]


def test_a_setting_with_several_variables_has_the_name_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Several(Settings):
        limit: int = Field(default=0, gt=0, validation_alias=AliasChoices("OWN_LIMIT", "OLD_LIMIT"))
        key: SecretStr = Field(
            default=SecretStr(""), validation_alias=AliasChoices("OWN_KEY", "OLD_KEY")
        )

    assert problems_of(Several) == ["OWN_LIMIT: Input should be greater than 0"]
    (tmp_path / "key").write_text("a key", encoding="utf-8")
    monkeypatch.setenv("OWN_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("OLD_LIMIT", "5")
    settings = load_settings(Several)
    assert (settings.limit, settings.key.get_secret_value()) == (5, "a key")


def test_a_ca_certificate_is_looked_for_when_tls_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_TLS_CA_FILE", "missing.pem")
    load_settings(Settings)
    monkeypatch.setenv("MQTT_TLS", "true")
    [problem] = problems_of(Settings)
    assert problem.startswith("MQTT_TLS_CA_FILE: ")
    assert "missing.pem" in problem
    Path("missing.pem").touch()
    load_settings(Settings)


def test_a_relative_path_may_start_at_the_root_of_the_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MQTT_TLS", "true")
    monkeypatch.setenv("MQTT_TLS_CA_FILE", "shared/config.py")
    assert load_settings(Settings).mqtt_tls_ca_file == ROOT / "shared/config.py"


def test_a_service_may_name_a_file_that_it_will_write() -> None:
    class Reporting(Settings):
        report_file: Path = Field(default=Path("report.json"))

    assert load_settings(Reporting).report_file == Path("report.json")


def test_log_level_is_taken_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert load_settings(Settings).log_level == "DEBUG"


def test_each_problem_is_one_line_with_the_name_of_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MQTT_PORT", "70000")
    monkeypatch.setenv("LOG_FORMAT", "xml")
    monkeypatch.setenv("TOPIC_PREFIX", "home/#")
    monkeypatch.setenv("ALLOWED_IDS", "1,two")
    monkeypatch.setenv("MQTT_TLS", "true")
    monkeypatch.setenv("MQTT_TLS_CA_FILE", "missing.pem")
    monkeypatch.setenv("MQTT_HOST", "broker..lan")
    problems = problems_of(OwnSettings)
    names = [problem.partition(":")[0] for problem in problems]
    assert sorted(names) == [
        "ALLOWED_IDS.1",
        "LOG_FORMAT",
        "MQTT_HOST",
        "MQTT_PORT",
        "MQTT_TLS_CA_FILE",
        "TOPIC_PREFIX",
    ]
    assert all("\n" not in problem for problem in problems)


def test_a_value_that_is_no_json_is_a_problem_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAIRS", "{oops")
    [problem] = problems_of(OwnSettings)
    assert "pairs" in problem
    assert "oops" not in problem


def test_a_file_that_is_no_text_is_a_problem_and_no_traceback() -> None:
    Path(".env").write_bytes(b"MQTT_HOST='\xff\xfe'\n")
    assert problems_of(Settings) == [".env: cannot be read: UnicodeDecodeError"]


def test_problems_and_representations_never_show_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(Settings):
        pin: SecretStr = Field(default=SecretStr("0000"), max_length=4)

    monkeypatch.setenv("MQTT_PASSWORD", "hunter2")
    assert "hunter2" not in repr(load_settings(Settings))
    monkeypatch.setenv("PIN", "hunter2")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(Strict)
    assert "PIN" in str(caught.value)
    assert "hunter2" not in repr(caught.value)
    # A traceback that is logged would print what caused the error.
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "host", ["mqtt://broker", "broker:1883", "user@broker", "broker\n", "bro ker", "[::1]", "a..b"]
)
def test_the_broker_must_be_a_host_name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("MQTT_HOST", host)
    [problem] = problems_of(Settings)
    assert problem.startswith("MQTT_HOST: must be a host name or an IP address")


@pytest.mark.parametrize("host", ["mqtt", "mqtt.example.com", "192.0.2.1", "::1", "brücke.local"])
def test_host_names_and_addresses(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("MQTT_HOST", host)
    assert load_settings(Settings).mqtt_host == host


@pytest.mark.parametrize("prefix", ["/home", "home/", "a//b", "home/+", "#", "my home"])
def test_a_topic_prefix_is_explained(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv("TOPIC_PREFIX", prefix)
    [problem] = problems_of(Settings)
    assert problem.startswith("TOPIC_PREFIX: must be levels separated by /, such as home/services")


def test_a_secret_must_not_end_in_a_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_PASSWORD", "hunter2\n")
    assert problems_of(Settings) == ["MQTT_PASSWORD: must not contain a line end"]


class SecretSettings(Settings):
    meter_token: SecretStr = Field(default=SecretStr(""), validation_alias="METER_TOKEN")
    spare_token: Secret | None = Field(default=None, validation_alias="SPARE_TOKEN")
    plain_token: str | None = Field(default=None, validation_alias="PLAIN_TOKEN")


def test_secrets_come_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from a file\r\n", encoding="utf-8")
    (tmp_path / "token").write_text("a token", encoding="utf-8")
    monkeypatch.setenv("MQTT_PASSWORD_FILE", str(tmp_path / "password"))
    assert load_settings(SecretSettings).spare_token is None
    monkeypatch.setenv("SPARE_TOKEN_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("PLAIN_TOKEN_FILE", str(tmp_path / "password"))
    # The file wins, because a first .env has a random password.
    (tmp_path / ".env").write_text(
        f"MQTT_PASSWORD='random'\nMETER_TOKEN_FILE='{tmp_path}/token'\n", encoding="utf-8"
    )
    monkeypatch.setitem(SecretSettings.model_config, "env_file", ".env")
    settings = load_settings(SecretSettings)
    assert settings.mqtt_password.get_secret_value() == "from a file"
    assert settings.meter_token.get_secret_value() == "a token"
    assert settings.spare_token == SecretStr("from a file")
    assert settings.plain_token is None


def test_a_missing_secret_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_PASSWORD_FILE", "/run/secrets/missing")
    problem = "MQTT_PASSWORD_FILE: cannot read /run/secrets/missing: FileNotFoundError"
    assert problems_of(Settings) == [problem]


@pytest.mark.parametrize("name", ["MQTT_TLS_CA_FILE", "MQTT_TLS_CERT_FILE", "MQTT_TLS_KEY_FILE"])
def test_tls_files_must_exist_with_tls(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/missing.pem")
    load_settings(Settings)
    monkeypatch.setenv("MQTT_TLS", "true")
    [problem] = problems_of(Settings)
    assert problem.startswith(f"{name}: /missing.pem does not exist")
