"""Settings come from the environment, then from `.env`, then from the defaults."""

from itertools import pairwise
from pathlib import Path

import pytest

from shared.config import ConfigurationError, Settings, load_settings

EXAMPLE = Path(__file__).resolve().parents[2] / ".env.example"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_every_field_has_a_default_and_a_description() -> None:
    load_settings(Settings)
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_environment_wins_over_the_file_and_the_file_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("MQTT_HOST='from-file'\nMQTT_PORT='2000'\n", encoding="utf-8")
    monkeypatch.setenv("MQTT_HOST", "from-environment")
    settings = load_settings(Settings)
    assert (settings.mqtt_host, settings.mqtt_port) == ("from-environment", 2000)
    assert settings.log_level == "INFO"


def test_a_problem_is_one_line_with_the_name_of_the_variable_and_never_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MQTT_PORT", "hunter2")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(Settings)
    [problem] = caught.value.problems
    assert problem.startswith("MQTT_PORT: ")
    assert "hunter2" not in problem


def test_the_example_file_names_every_setting_with_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", EXAMPLE)
    assert load_settings(Settings) == Settings(_env_file=None)
    assert example_comments().keys() >= Settings.model_fields.keys()


def test_the_example_file_describes_each_setting_as_the_code_does() -> None:
    comments = example_comments()
    for name, field in Settings.model_fields.items():
        assert comments[name] == field.description


def test_the_example_file_has_no_blank_line_and_quotes_every_value() -> None:
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or (line.count("'") == 2 and line.endswith("'"))


def example_comments() -> dict[str, str]:
    """The comment above each variable of the example file, by the name of the setting."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    return {
        line.partition("=")[0].lower(): above.removeprefix("# ")
        for above, line in pairwise(lines)
        if not line.startswith("#")
    }
