"""The device of a service in Home Assistant: its payload, and its messages on a broker."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ValidationError

from shared.config import Settings
from shared.discovery import (
    BinarySensor,
    Number,
    Select,
    Sensor,
    Switch,
    Text,
    config_topic,
    device_config,
)
from shared.mqtt import PublishTimeoutError
from shared.schemas import Command, Message, Topic
from shared.service import BaseService
from tests.brokers import Broker
from tests.fakes import FakeMQTT
from tests.library.conftest import Mosquitto
from tests.library.examples import boiler_discovery as boiler
from tests.library.probes import LogProbe
from tests.observer import PATIENCE_SECONDS, Observer
from tests.probes import until
from tests.running import running

type MakeSettings = Callable[..., Settings]

GOLDEN = Path(__file__).parent / "discovery"


# Payload


async def announced(service: BaseService[Any], fake_mqtt: FakeMQTT) -> Any:
    async with running(service, fake_mqtt):
        return fake_mqtt.retained[config_topic(service.settings, service.name)]


class Plain(BaseService[Settings]):
    name = "plain"

    async def run(self) -> None:
        self.mqtt.connect_background()
        await self.wait_for_shutdown()


@pytest.mark.parametrize(
    ("name", "service_class", "settings"),
    [
        ("every-mark", boiler.Boiler, {}),
        ("health", Plain, {"topic_prefix": "häuser/1"}),
        ("no-heartbeat", Plain, {"heartbeat_interval_seconds": 0}),
    ],
)
async def test_payload_is_the_golden_one(
    name: str,
    service_class: type[BaseService[Any]],
    settings: dict[str, Any],
    make_settings: MakeSettings,
) -> None:
    """Set WRITE_GOLDEN=1 to write the files, then run the test against Home Assistant."""
    made = make_settings(
        **{"topic_prefix": "home", "ha_discovery_prefix": "homeassistant"} | settings
    )
    service = service_class(made)
    config = await announced(service, FakeMQTT(service.name, made.topic_prefix))
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    file = GOLDEN / f"{name}.json"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_the_unit_of_a_mark_is_in_the_schema_of_the_payload() -> None:
    fields = boiler.Reading.model_json_schema(mode="serialization")["properties"]
    assert fields["power"]["unit"] == "W"
    assert "unit" not in fields["phase"]


@pytest.mark.parametrize(
    ("prefix", "other"),
    [("a/b", "a_b"), ("a/b", "a-b"), ("a", "A"), ("ä", "a")],
)
def test_ids_of_two_repositories_differ(
    make_settings: MakeSettings, prefix: str, other: str
) -> None:
    def ids(topic_prefix: str) -> set[str]:
        config = device_config(make_settings(topic_prefix=topic_prefix), "same", [], {}, {})
        components = config["components"].values()
        return {*config["device"]["identifiers"], *(each["unique_id"] for each in components)}

    assert ids(prefix) & ids(other) == set()


class Argument(BaseModel):
    other: bool


def one_topic(kind: Any, pattern: str = "{prefix}/{service}/state", **options: Any) -> list[Topic]:
    namespace = {"__annotations__": {"value": kind}, "__module__": __name__}
    model: type[BaseModel] = type("State", (Message,), namespace)
    return [Topic(pattern=pattern, payload=model, description="", **options)]


@pytest.mark.parametrize(
    ("topics", "problem"),
    [
        (one_topic(Annotated[bool, Sensor()]), "the type of a BinarySensor"),
        (one_topic(Annotated[int, BinarySensor()]), "must be bool"),
        (one_topic(Annotated[str, Switch(command="set")]), "must be bool"),
        (one_topic(Annotated[str, Number(command="set", min=0, max=1)]), "must be int or float"),
        (one_topic(Annotated[str, Select(command="set")]), "must be Literal or Enum"),
        (one_topic(Annotated[int, Text(command="set")]), "must be str"),
        (one_topic(Annotated[bool, Switch(command="none")]), r"not called for 'none'"),
        (one_topic(Annotated[bool, Switch(command="set")]), "'set' must have an argument"),
        (one_topic(Annotated[int, Sensor()], direction="receive"), "not a topic that"),
        (one_topic(Annotated[int, Sensor()], "{prefix}/{service}/{room}"), "not a topic that"),
        (one_topic(Annotated[int, Sensor()], "{prefix}/+/state"), "not a topic that"),
        (one_topic(Annotated[int, Sensor()]) * 2, "two entities have the id 'state_value'"),
    ],
)
def test_a_mark_that_is_not_valid_is_named(
    make_settings: MakeSettings, topics: list[Topic], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        device_config(make_settings(), "plain", topics, {"set": Argument}, {})
    assert str(raised.value).startswith("plain: ")


@pytest.mark.parametrize(
    "kind", [Annotated[bool | None, BinarySensor()], Annotated[bool, BinarySensor()] | None]
)
def test_a_mark_may_be_inside_of_an_optional_type(make_settings: MakeSettings, kind: Any) -> None:
    config = device_config(make_settings(), "plain", one_topic(kind), {}, {})
    assert config["components"]["state_value"]["platform"] == "binary_sensor"


def test_a_command_without_a_model_takes_every_argument(make_settings: MakeSettings) -> None:
    topics = one_topic(Annotated[Literal["a", 1], Select(command="set")])
    config = device_config(make_settings(), "plain", topics, {"set": Command}, {})
    assert config["components"]["state_value"]["options"] == ["a", "1"]


@pytest.mark.parametrize("prefix", ["home assistant", "a/+", "a//b"])
def test_a_discovery_prefix_must_be_a_topic(make_settings: MakeSettings, prefix: str) -> None:
    with pytest.raises(ValidationError, match="must be levels"):
        make_settings(ha_discovery_prefix=prefix)


async def test_a_mark_that_is_not_valid_stops_the_service(
    make_settings: MakeSettings, fake_mqtt: FakeMQTT
) -> None:
    class Wrong(Plain):
        topics = one_topic(Annotated[bool, Sensor()])

    service = Wrong(make_settings(ha_discovery_prefix="homeassistant"))
    service.mqtt = fake_mqtt
    with pytest.raises(ValueError, match=r"plain: State\.value: the type of a Sensor"):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await service.start()
    assert config_topic(service.settings, "plain") not in fake_mqtt.retained


async def test_nothing_is_announced_without_the_setting(
    make_settings: MakeSettings, fake_mqtt: FakeMQTT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "shared.announcer", raising=False)
    settings = make_settings(heartbeat_interval_seconds=0)
    async with running(Plain(settings), fake_mqtt):
        pass
    assert fake_mqtt.published == []
    assert "shared.announcer" not in sys.modules


# On a broker


@pytest.fixture
def settings(make_settings: MakeSettings, topic_prefix: str) -> Settings:
    """Settings whose discovery prefix is below the topic prefix, which the observer follows."""
    return make_settings(ha_discovery_prefix=f"{topic_prefix}/ha", heartbeat_interval_seconds=0)


@pytest.fixture
async def observer(broker: Broker, settings: Settings) -> AsyncIterator[Observer]:
    async with Observer(broker.host, broker.port, settings.topic_prefix) as observer:
        yield observer


def config_event(settings: Settings, service: str = "plain") -> str:
    return config_topic(settings, service).removeprefix(f"{settings.topic_prefix}/")


async def retained(settings: Settings, service: str = "plain") -> Any:
    """Return the retained announcement, as a client that connects now gets it."""
    prefix = config_topic(settings, service).rpartition("/")[0]
    async with Observer(settings.mqtt_host, settings.mqtt_port, prefix) as observer:
        observer.publish("end", 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            _, payload = await observer._messages.get()
    return payload if isinstance(payload, dict) else None


@pytest.mark.mosquitto
async def test_the_announcement_comes_before_online(observer: Observer, settings: Settings) -> None:
    async with running(Plain(settings)):
        config = await observer.next(config_event(settings))
        assert "plain/availability" not in observer.seen
        await observer.next("plain/availability", status="online")
    assert await retained(settings) == config


async def test_entities_that_are_gone_are_removed_first(
    observer: Observer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.announcer._RETAINED_SECONDS", 3.0)
    event = config_event(settings)

    class Before(Plain):
        topics = one_topic(Annotated[int, Sensor()])

    class After(Plain):
        topics = one_topic(Annotated[bool, BinarySensor()])

        async def run(self) -> None:
            self.on_command("refresh", lambda _: None, button="Refresh")
            await super().run()

    async with running(After(settings)):
        await observer.next(event)
    async with running(Before(settings)):
        removal, config = await observer.next(event), await observer.next(event)
    ghosts = {
        "state_value": {"platform": "binary_sensor"},
        "command_refresh": {"platform": "button"},
    }
    assert removal["components"] == ghosts
    assert config["components"]["state_value"]["platform"] == "sensor"
    async with running(Before(settings)):
        assert await observer.next(event) == config


@pytest.mark.parametrize("content", ['"text"', '{"components": {"old": {}}}', '{"components": []}'])
async def test_other_content_of_the_topic_is_replaced(
    observer: Observer, settings: Settings, content: str
) -> None:
    event = config_event(settings)
    observer._client.publish(config_topic(settings, "plain"), content, retain=True)
    await observer.next(event)
    async with running(Plain(settings)):
        assert "components" in await observer.next(event)


@pytest.mark.mosquitto
@pytest.mark.parametrize("prefix", ["", "other"])
async def test_another_prefix_clears_the_earlier_announcement(
    observer: Observer, settings: Settings, prefix: str
) -> None:
    event = config_event(settings)
    async with running(Plain(settings)):
        await observer.next(event)
    changed = settings.model_copy(
        update={"ha_discovery_prefix": prefix and f"{settings.topic_prefix}/{prefix}"}
    )
    async with running(Plain(changed)):
        assert await observer.next(event) is None
        await observer.next("plain/availability", status="online")
        if prefix:
            assert await retained(changed) is not None
    assert await retained(settings) is None
    async with running(Plain(changed)):
        await observer.next("plain/availability", status="online")
    assert observer.seen.count(f"{settings.topic_prefix}/{event}") == 2


@pytest.mark.mosquitto
async def test_two_repositories_announce_two_devices(
    observer: Observer, settings: Settings
) -> None:
    other = settings.model_copy(update={"topic_prefix": f"{settings.topic_prefix}/two"})
    other = other.model_copy(update={"data_dir": settings.data_dir / "two"})
    async with running(Plain(settings)), running(Plain(other)):
        first, second = await retained(settings), await retained(other)
    assert first["device"]["identifiers"] != second["device"]["identifiers"]


async def test_replicas_announce_one_device(observer: Observer, settings: Settings) -> None:
    event, other = config_event(settings), settings.data_dir / "two"
    async with running(Plain(settings)):
        first = await observer.next(event)
        async with running(Plain(settings.model_copy(update={"data_dir": other}))):
            assert await observer.next(event) == first


@pytest.fixture
async def home_assistant(broker: Broker, settings: Settings) -> AsyncIterator[Observer]:
    """An observer of announcements, below a discovery prefix of their own."""
    settings.ha_discovery_prefix = f"{settings.topic_prefix}-ha"
    prefix = f"{settings.ha_discovery_prefix}/device"
    async with Observer(broker.host, broker.port, prefix) as observer:
        yield observer


def publish_status(home_assistant: Observer, settings: Settings, status: str) -> None:
    home_assistant._client.publish(f"{settings.ha_discovery_prefix}/status", status, qos=1)


async def test_the_birth_of_home_assistant_brings_the_announcement_again(
    home_assistant: Observer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[tuple[float, float]] = []

    def no_delay(*limits: float) -> float:
        delays.append(limits)  # type: ignore[arg-type]
        return 0.0

    event = config_topic(settings, "plain").partition("/device/")[2]
    async with running(Plain(settings)):
        await home_assistant.next(event)
        monkeypatch.setattr("shared.announcer.random.uniform", no_delay)
        for status in ("offline", "online"):
            publish_status(home_assistant, settings, status)
        await home_assistant.next(event)
    assert delays == [(2.0, 5.0)]


async def test_a_stop_does_not_wait_for_the_delay(
    observer: Observer,
    home_assistant: Observer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Plain(settings)
    async with running(service):
        monkeypatch.setattr("shared.announcer.random.uniform", lambda *_: 3600)
        publish_status(home_assistant, settings, "online")
        await until(lambda: "discovery" in {task.get_name() for task in asyncio.all_tasks()})
        service.stop()
        await observer.next("plain/availability", status="offline")


@pytest.mark.parametrize("persistent", [True, False])
async def test_the_announcement_outlives_a_restart_of_the_broker(
    make_mosquitto: Callable[..., Mosquitto],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    log: LogProbe,
    persistent: bool,
) -> None:
    monkeypatch.setattr("shared.mqtt.connection.random.uniform", lambda *_: 0.05)
    broker = make_mosquitto(persistent=persistent)
    broker.start()
    settings.mqtt_port = broker.port
    async with running(Plain(settings)):
        await log.next("mqtt_connected")
        before = await retained(settings)
        broker.stop()
        broker.start()
        await log.next("mqtt_connected")
        assert await retained(settings) == before
    assert before is not None


async def test_a_failed_announcement_does_not_keep_the_service_offline(
    observer: Observer,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    log: LogProbe,
) -> None:
    service = Plain(settings)
    publish = service.mqtt.publish

    async def refuse(topic: str, *arguments: Any, **options: Any) -> None:
        if topic == config_topic(settings, "plain"):
            raise PublishTimeoutError("no acknowledgement")
        await publish(topic, *arguments, **options)

    monkeypatch.setattr(service.mqtt, "publish", refuse)
    async with running(service):
        await log.next("discovery_not_sent", topic=config_topic(settings, "plain"))
        await observer.next("plain/availability", status="online")
