"""Fixtures of all tests."""

import importlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

{% if cookiecutter.include_home_assistant %}
import httpx
{% endif %}
import pytest
import structlog

from shared.config import Settings
{% if cookiecutter.include_home_assistant %}
from shared.home_assistant import HomeAssistantClient
{% endif %}
from shared.log import get_logger
from tests.brokers import Broker, make_broker
from tests.fakes import {{ "FakeHomeAssistant, " if cookiecutter.include_home_assistant }}{{ "FakeInflux, " if cookiecutter.include_influxdb }}FakeMQTT
from tests.running import StartedService, service_class

ROOT = Path(__file__).resolve().parent.parent

type LoadService = Callable[[str], SimpleNamespace]


class MakeSettings(Protocol):
    def __call__[S: Settings](self, settings_class: type[S] = ..., **overrides: Any) -> S: ...


class StartService(Protocol):
    async def __call__(self, name: str, **settings: Any) -> StartedService: ...


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep variables, `.env` and brokers of this machine away from a test."""
    names = {name.upper() for name in Settings.model_fields}
    names |= {f"{name}_FILE" for name in names}
    # The settings of services begin with their names.
    prefixes = tuple(path.name.upper().replace("-", "_") + "_" for path in ROOT.glob("services/*"))
    for name in list(os.environ):
        upper = name.upper()
        if upper in names or upper.startswith(prefixes) or upper.endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HEALTH_PATH", str(tmp_path / "data" / "healthcheck"))
    # Nothing listens there. The default port might be that of a broker in use.
    monkeypatch.setenv("MQTT_PORT", "1")
    # A secret of another test must not be redacted in this one.
    monkeypatch.setattr("shared.redaction._secrets", [])


@pytest.fixture(scope="session", autouse=True)
def _logging() -> None:
    """As in a service, before anything is logged: whichever test comes first."""
    get_logger("test", level="DEBUG")
    # paho would log every packet of a flood.
    logging.getLogger("paho").setLevel(logging.INFO)


@pytest.fixture(scope="session")
def _session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = make_broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def broker(_session_broker: Broker) -> Broker:
    """A running broker that all tests share: use topics of your own."""
    return _session_broker


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """A prefix that no other test uses."""
    return f"test/{request.node.name.split('[')[0]}-{os.getpid()}"


@pytest.fixture
def make_settings(
    request: pytest.FixtureRequest, tmp_path: Path, topic_prefix: str
) -> MakeSettings:
    """Make settings for this test, and for the `broker` fixture if the test uses it."""
    defaults: dict[str, Any] = {
        "topic_prefix": topic_prefix,
        "data_dir": tmp_path / "data",
        "mqtt_host": "127.0.0.1",
    }
    if "broker" in request.fixturenames:
        broker: Broker = request.getfixturevalue("broker")
        defaults |= {"mqtt_host": broker.host, "mqtt_port": broker.port}

    def make[S: Settings](settings_class: type[S] = Settings, **overrides: Any) -> S:  # type: ignore[assignment]
        return settings_class(**{**defaults, **overrides})

    return make


@pytest.fixture
def logger() -> structlog.stdlib.BoundLogger:
    return get_logger("test", level="DEBUG")


@pytest.fixture
def fake_mqtt(topic_prefix: str) -> FakeMQTT:
    return FakeMQTT("fake", topic_prefix)
{% if cookiecutter.include_home_assistant %}


@pytest.fixture
def fake_ha(monkeypatch: pytest.MonkeyPatch) -> FakeHomeAssistant:
    """Home Assistant in memory, to which the client of every service in this test connects."""
    fake = FakeHomeAssistant()

    def make(settings: Settings, logger: structlog.stdlib.BoundLogger) -> HomeAssistantClient:
        transport = httpx.MockTransport(fake)
        return HomeAssistantClient(settings.ha_url, "token", logger=logger, transport=transport)

    monkeypatch.setattr(HomeAssistantClient, "from_settings", make)
    monkeypatch.setattr(HomeAssistantClient, "watch", lambda _client, *ids: fake.watch(*ids))
    return fake
{% endif %}
{% if cookiecutter.include_influxdb %}


@pytest.fixture
def fake_influx(monkeypatch: pytest.MonkeyPatch) -> FakeInflux:
    """InfluxDB in memory, to which the client of every service in this test connects."""
    # Slow to import, and few services use it.
    from shared.influx import InfluxClient  # noqa: PLC0415

    fake = FakeInflux()
    monkeypatch.setattr(InfluxClient, "_connect", lambda _client: fake)
    return fake
{% endif %}


@pytest.fixture
def load_service() -> Iterator[LoadService]:
    """Import the modules of one service, whose names repeat between services.

    `load_service("my-service").main` is its `main.py`.
    """
    loaded: list[str] = []
    directories: list[str] = []

    def load(name: str) -> SimpleNamespace:
        directory = ROOT / "services" / name
        files = [path.stem for path in sorted(directory.glob("*.py"))]
        for stem in loaded:
            sys.modules.pop(stem, None)
        loaded.extend(files)
        sys.path.insert(0, str(directory))
        directories.append(str(directory))
        return SimpleNamespace(**{stem: importlib.import_module(stem) for stem in files})

    yield load
    for stem in loaded:
        sys.modules.pop(stem, None)
    for entry in directories:
        sys.path.remove(entry)


@pytest.fixture
async def start_service(
    load_service: LoadService,
    make_settings: MakeSettings,
    topic_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[StartService]:
    """Start a service by its name, with a broker in memory and a data directory of its own.

    Started again under the same name, it finds the files of its last run.
    """
    started: list[StartedService] = []

    async def start(name: str, **settings: Any) -> StartedService:
        data_dir = tmp_path / "data" / name
        # The health check of the service reads these from the environment.
        monkeypatch.setenv("DATA_DIR", str(data_dir))
        monkeypatch.setenv("HEALTH_PATH", str(data_dir / "healthcheck"))
        modules = load_service(name)
        created = service_class(modules.main)
        assert created.name == name, f"services/{name}/main.py: name must be {name!r}"
        defaults = {"data_dir": data_dir, "heartbeat_interval_seconds": 0}
        # A blocked loop fails its test. The watchdog would end all tests.
        defaults["health_watchdog"] = False
        instance: Any = created(make_settings(created.settings_class, **{**defaults, **settings}))
        instance.mqtt = mqtt = FakeMQTT(name, topic_prefix)
        started.append(StartedService(instance, mqtt, modules))
        await started[-1].connected()
        return started[-1]

    yield start
    for service in started:
        await service.stop()
