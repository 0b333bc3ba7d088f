"""The diagnosis of the announcements for Home Assistant."""

from collections.abc import Callable

import pytest
from paho.mqtt import publish

from shared.config import Settings
from shared.discovery import config_topic, device_id
from tests.brokers import Broker
from tests.library.conftest import Run

type Diagnose = Callable[..., tuple[int, dict[str, str]]]


@pytest.fixture
def diagnose(run: Run, broker: Broker, topic_prefix: str) -> Diagnose:
    """Runs this step with the broker, and gives the exit code and the result."""

    def diagnose(**variables: str) -> tuple[int, dict[str, str]]:
        defaults = {
            "HA_DISCOVERY_PREFIX": f"{topic_prefix}/ha",
            "TOPIC_PREFIX": topic_prefix,
            "MQTT_HOST": broker.host,
            "MQTT_PORT": str(broker.port),
        }
        code, results = run("--step", "discovery", **{**defaults, **variables})
        return code, results["discovery"]

    return diagnose


@pytest.fixture
def settings(make_settings: Callable[..., Settings], topic_prefix: str) -> Settings:
    return make_settings(ha_discovery_prefix=f"{topic_prefix}/ha")


@pytest.fixture
def announced(broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The announcement of a meter, and that of another repository's service."""
    monkeypatch.setattr("shared.announcer._RETAINED_SECONDS", 2.0)
    other = settings.model_copy(update={"topic_prefix": f"{settings.topic_prefix}_other"})
    for owner in (settings, other):
        topic = config_topic(owner, "meter")
        publish.single(topic, "{}", 1, retain=True, hostname=broker.host, port=broker.port)


def test_without_the_setting_there_is_nothing_to_check(diagnose: Diagnose) -> None:
    code, result = diagnose(HA_DISCOVERY_PREFIX="")
    assert (code, result["status"]) == (0, "SKIP")


def test_no_broker(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.diagnose._MQTT_TIMEOUT_SECONDS", 0.2)
    code, result = diagnose(MQTT_PORT="1")
    assert (code, result["status"]) == (1, "FAIL")
    assert "no connection" in result["detail"]


def test_a_ca_file_that_is_no_certificate(diagnose: Diagnose) -> None:
    code, result = diagnose(MQTT_TLS="true", MQTT_TLS_CA_FILE=__file__)
    assert (code, result["status"]) == (1, "FAIL")
    assert "PEM" in result["fix"]


def test_no_announcement(diagnose: Diagnose) -> None:
    code, result = diagnose()
    assert (code, result["status"]) == (1, "FAIL")
    assert "no service is announced" in result["detail"]


@pytest.mark.usefixtures("announced")
def test_announcements_without_a_token(diagnose: Diagnose) -> None:
    code, result = diagnose()
    assert (code, result["status"]) == (0, "PASS")
    assert result["detail"].startswith("announced: meter (")


@pytest.mark.usefixtures("announced")
@pytest.mark.parametrize(
    ("status", "service", "expected"),
    [
        (200, "meter", ("PASS", "in Home Assistant: meter")),
        (200, "other", ("FAIL", "announced, but not in Home Assistant: meter")),
        (401, "meter", ("FAIL", "401")),
    ],
)
def test_entities_in_home_assistant(
    diagnose: Diagnose,
    settings: Settings,
    serve_http: Callable[[int, str], str],
    *,
    status: int,
    service: str,
    expected: tuple[str, str],
) -> None:
    url = serve_http(status, f"[{{('mqtt', '{device_id(settings, service)}')}}]")
    _, result = diagnose(HA_URL=url, HA_TOKEN="t0ken")
    assert result["status"] == expected[0]
    assert expected[1] in result["detail"]
