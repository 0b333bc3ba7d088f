"""Fixtures of all tests."""

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import pytest
import structlog

from shared.config import Settings
from shared.log import get_logger
from shared.mqtt import MQTTClient
from shared.session import Session
from tests.brokers import Broker, EmbeddedBroker, Mosquitto, find_mosquitto
from tests.fakes import FakeMQTT
from tests.probes import LogProbe

ROOT = Path(__file__).resolve().parent.parent


type LoadService = Callable[[str], SimpleNamespace]


class Address(Protocol):
    host: str
    port: int


class MakeClient(Protocol):
    def __call__(self, broker: Address, service: str = ..., **options: Any) -> MQTTClient: ...


class MakeSettings(Protocol):
    def __call__[S: Settings](self, settings_class: type[S] = ..., **overrides: Any) -> S: ...


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of the developer's reaches a test."""
    names = {name.upper() for name in Settings.model_fields}
    for name in [name for name in os.environ if name.upper() in names]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(scope="session", autouse=True)
def _logging() -> None:
    """As in a service, before anything is logged: whichever test comes first."""
    get_logger("test", level="DEBUG")
    # Every packet of a flood would be told.
    logging.getLogger("paho").setLevel(logging.INFO)


@pytest.fixture(scope="session")
def _session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    program, folder = find_mosquitto(), tmp_path_factory.mktemp("broker")
    broker = Mosquitto(program, folder) if program else EmbeddedBroker(folder / "log")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def broker(_session_broker: Broker) -> Broker:
    """A running broker that all tests share: use topics of your own."""
    return _session_broker


@pytest.fixture
def make_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Makes real brokers that a test may stop, kill and freeze; skips without Mosquitto."""
    program = find_mosquitto()
    if program is None:
        pytest.skip("mosquitto is missing")
    made: list[Mosquitto] = []

    def make(**options: Any) -> Mosquitto:
        folder = tmp_path / f"mosquitto-{len(made)}"
        folder.mkdir()
        made.append(Mosquitto(program, folder, **options))
        return made[-1]

    yield make
    for mosquitto in made:
        mosquitto.stop()


@pytest.fixture
def mosquitto(make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """A real broker of the test's own, running."""
    broker = make_mosquitto()
    broker.start()
    return broker


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """A prefix that no other test uses."""
    return f"test/{request.node.name.split('[')[0]}-{os.getpid()}"


@pytest.fixture
def make_settings(
    request: pytest.FixtureRequest, tmp_path: Path, topic_prefix: str
) -> MakeSettings:
    """Makes settings for this test; with the `broker` fixture in use, for that broker."""
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
async def log(logger: structlog.stdlib.BoundLogger) -> AsyncIterator[LogProbe]:
    """What is logged during the test."""
    probe = LogProbe(asyncio.get_running_loop())
    logging.getLogger().addHandler(probe)
    yield probe
    logging.getLogger().removeHandler(probe)


@pytest.fixture
async def make_client(
    topic_prefix: str, logger: structlog.stdlib.BoundLogger, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeClient]:
    """Makes clients of a broker, which come back quickly and are disconnected in the end."""
    monkeypatch.setattr("shared.mqtt_link.random.uniform", lambda *_: 0.05)
    made: list[MQTTClient] = []

    def make(broker: Address, service: str = "tested", **options: Any) -> MQTTClient:
        defaults: dict[str, Any] = {"topic_prefix": topic_prefix, "logger": logger}
        options = {**defaults, **options}
        made.append(MQTTClient(broker.host, broker.port, service=service, **options))
        return made[-1]

    yield make
    for client in reversed(made):
        await client.disconnect()


@pytest.fixture
def claim_session(
    tmp_path: Path, logger: structlog.stdlib.BoundLogger
) -> Iterator[Callable[[], Session]]:
    """Claims the session of one service, again and again, as its process does when it starts."""
    claimed: list[Session] = []

    def claim() -> Session:
        for session in claimed:
            session.close()
        claimed.append(Session.claim(tmp_path / "session.json", "restarted", logger))
        return claimed[-1]

    yield claim
    for session in claimed:
        session.close()


@pytest.fixture
def fake_mqtt(topic_prefix: str) -> FakeMQTT:
    return FakeMQTT("fake", topic_prefix)


@pytest.fixture
def load_service() -> Iterator[LoadService]:
    """Imports the modules of one service, whose names repeat between services.

    `load_service("my-service").main` is its `main.py`.
    """
    loaded: list[str] = []
    folders: list[str] = []

    def load(name: str) -> SimpleNamespace:
        folder = ROOT / "services" / name
        modules: dict[str, ModuleType] = {}
        files = {path.stem: path for path in sorted(folder.glob("*.py"))}
        for stem in loaded:
            sys.modules.pop(stem, None)
        loaded.extend(files)
        sys.path.insert(0, str(folder))
        folders.append(str(folder))
        for stem in files:
            modules[stem] = importlib.import_module(stem)
        return SimpleNamespace(**modules)

    yield load
    for stem in loaded:
        sys.modules.pop(stem, None)
    for entry in folders:
        sys.path.remove(entry)
