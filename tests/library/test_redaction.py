import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.config import Settings, load_settings
from shared.redaction import REDACTED, hide_secrets, redact, redact_text


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2hunter2",
        "{'authorization': 'Token hunter2hunter2'}",
        "sent bearer hunter2hunter2 along",
        "mqtts://user:hunter2hunter2@broker:8883",  # pragma: allowlist secret
        "https://hunter2hunter2@example.org/path",
        "GET /api?access_token=hunter2hunter2&page=2",
        "GET /api?page=2&key=hunter2hunter2",
        '{"api_key": "hunter2hunter2"}',
        "MQTT_PASSWORD='hunter2hunter2'",
        '{"password": "correct horse hunter2 staple"}',
        r"passwords='it\'s hunter2'",
        "password=ab,hunter2",
        "pwd: hunter2",
        "http://user:p@ss@hunter2@host/path",  # pragma: allowlist secret
        "mqtt://user:pa/hunter2@host",  # pragma: allowlist secret
        "http://user:p@ss/hunter2@host/",  # pragma: allowlist secret
        "Cookie: theme=dark; session=hunter2",
    ],
)
def test_secrets_within_text(text: str) -> None:
    assert "hunter2" not in redact_text(text)
    assert REDACTED in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "connection_lost",
        "https://example.org/path?page=2",
        "homelab/example/heartbeat",
        "mail to someone@example.org",
        "http://example.org:8080/path?mail=someone@example.org",
        "http://example.org:8080?mail=someone@example.org",
        "the compass: north, bypass=on",
        "",
    ],
)
def test_harmless_text_stays(text: str) -> None:
    assert redact_text(text) == text


@pytest.mark.parametrize(
    "key", ["token", "api_token", "PASSWORD", "apiKey", "Authorization", "pass"]
)
def test_secrets_by_the_name_of_the_key(key: str) -> None:
    assert redact({"outer": [{key: "hunter2"}, {key: {"nested": "hunter2"}}]}) == {
        "outer": [{key: REDACTED}, {key: REDACTED}]
    }


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", ["a", "1f", "a.", "://", "a://", "token ", "bearer ", "cookie "])
def test_long_text_takes_no_longer_than_its_length(unit: str) -> None:
    """Were it the square of the length, a single one of these would take an hour."""
    text = unit * (1_000_000 // len(unit))
    assert redact_text(text) == text


def test_an_empty_secret_stays_visible_as_empty() -> None:
    assert redact({"password": "", "token": None}) == {"password": "", "token": None}


def test_names_that_only_contain_a_secret_word_stay() -> None:
    assert redact({"token_count": 3, "secretary": "Ada"}) == {"token_count": 3, "secretary": "Ada"}


def test_other_objects_become_text_that_json_can_hold() -> None:
    plain = redact(
        {
            "path": Path("/data"),
            "time": datetime(2026, 1, 1, tzinfo=UTC),
            "error": ValueError("no route to http://u:hunter2@host"),
            "secret_value": SecretStr("hunter2"),
            "many": (1, 2.5, None, True),
            "bytes": b"\xff",
        }
    )
    assert "hunter2" not in json.dumps(plain)
    assert redact((1, 2.5, None, True)) == [1, 2.5, None, True]
    # JSON has no word for them.
    assert redact([float("nan"), float("inf")]) == ["nan", "inf"]


def test_data_that_contains_itself_ends_somewhere() -> None:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    assert json.dumps(redact(loop))


SECRET = r"correct/horse's \battery"


@pytest.mark.parametrize(
    "value",
    [
        f"the broker rejects {SECRET}, sorry",
        Path("/srv") / SECRET / "file",
        ["mosquitto_pub", "-P", SECRET],
        ValueError("not valid", SECRET),
        "http://host/?q=correct%2Fhorse%27s%20%5Cbattery",
    ],
    ids=["sentence", "path", "arguments", "error", "url"],
)
def test_values_of_loaded_secrets_are_removed_everywhere(
    monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    monkeypatch.setenv("MQTT_PASSWORD", SECRET)
    load_settings(Settings)
    assert "horse" not in str(redact({"value": value}))


def test_short_secrets_are_removed_as_whole_words() -> None:
    hide_secrets(["", "on", "mqtt"])
    text = redact_text("mqtt_connected with mqtt, mqtts is on")
    assert text == "mqtt_connected with [redacted], mqtts is on"


def test_times_have_the_form_of_all_times() -> None:
    noon = datetime(2026, 1, 1, 13, tzinfo=timezone(timedelta(hours=1)))
    assert redact(noon) == "2026-01-01T12:00:00Z"
