"""BaseService within one process, with a broker."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import structlog
from pydantic import Field

from shared.config import ConfigurationError, Settings
from shared.mqtt import NotConnectedError
from shared.schemas import Command, Heartbeat, Message
from shared.service import BaseService, run_service
from shared.tracing import bind_trace_id
from tests.brokers import Broker
from tests.library.conftest import MakeClient, Mosquitto
from tests.observer import PATIENCE_SECONDS, Observer
from tests.running import running

type MakeSettings = Callable[..., Settings]

pytestmark = pytest.mark.usefixtures("broker")


class Probe(BaseService[Settings]):
    """Connects and waits, while the tests call its methods."""

    name = "probe"

    async def run(self) -> None:
        self.mqtt.connect_background()
        await self.wait_for_shutdown()


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(shutdown_timeout_seconds=4.0)


@pytest.fixture
async def observer(broker: Broker, settings: Settings) -> AsyncIterator[Observer]:
    async with Observer(broker.host, broker.port, settings.topic_prefix) as observer:
        yield observer


async def ended(service: BaseService[Any]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await service.start()


# Settings class


class OwnSettings(Settings):
    interval_seconds: float = Field(default=3.0)


class Own(BaseService[OwnSettings]):
    name = "own"

    async def run(self) -> None: ...


class Heir(Own):
    name = "heir"


class Family[S: OwnSettings](BaseService[S]):
    """A base of services that leaves the settings open."""


class Child(Family[OwnSettings]):
    name = "child"

    async def run(self) -> None: ...


def test_the_settings_class_comes_from_the_brackets() -> None:
    assert Own.settings_class is OwnSettings
    assert Heir.settings_class is OwnSettings
    assert Child.settings_class is OwnSettings
    assert Probe.settings_class is Settings


def test_a_private_name_of_the_base_class_is_rejected() -> None:
    with pytest.raises(TypeError, match=r"Shadowing\._heartbeat: BaseService uses this name"):

        class Shadowing(Probe):
            def _heartbeat(self) -> dict[str, Any]:
                return {}


def test_an_attribute_of_the_base_class_is_rejected() -> None:
    with pytest.raises(TypeError, match=r"Shadowing\._tasks: BaseService uses this name"):

        class Shadowing(Probe):
            _tasks = None  # type: ignore[assignment]


def test_the_client_id_may_hold_the_name_of_the_service(make_settings: MakeSettings) -> None:
    service = Probe(make_settings(mqtt_client_id="plant-{service}"))
    assert service.mqtt.client_id == "plant-probe"


# Lifecycle


async def test_birth_heartbeat_and_offline(observer: Observer, make_settings: MakeSettings) -> None:
    class Checked(Probe):
        def health_check(self) -> dict[str, Any]:
            return {"queue": 3}

    settings = make_settings(heartbeat_interval_seconds=0.1, service_version="4f2a", instance=3)
    async with running(Checked(settings)):
        await observer.next("probe/availability", status="online")
        first = Heartbeat.model_validate(await observer.next("probe/heartbeat"))
        second = Heartbeat.model_validate(await observer.next("probe/heartbeat"))
        assert (first.status, first.service, first.reasons) == ("online", "probe", [])
        assert (first.version, first.instance) == ("4f2a", 3)
        assert first.model_extra == {"queue": 3}
        assert 0 <= first.uptime_seconds < second.uptime_seconds
        assert first.memory_mb > 1
    await observer.next("probe/availability", status="offline", reason="stopped")


async def test_the_heartbeat_tells_the_last_failure_and_the_number_of_dead_letters(
    observer: Observer, make_settings: MakeSettings
) -> None:
    class Failing(Probe):
        async def run(self) -> None:
            self.mqtt.subscribe(self.topic("bad"), self.fail)
            await super().run()

        def fail(self, _topic: str, _payload: object) -> None:
            raise OSError("password=s3cret " + 300 * "x")

        async def work(self) -> None:
            self.fail("", "")

    service = Failing(make_settings(heartbeat_interval_seconds=0.1))
    async with running(service):
        healthy = await observer.next("probe/heartbeat")
        assert "last_failure" not in healthy
        assert healthy["dead_letters"] == 0
        observer.publish("probe/bad", 1)
        await observer.next("probe/heartbeat", dead_letters=1)
        service.create_task(service.every(60, service.work), name="work")
        while "last_failure" not in (failed := await observer.next("probe/heartbeat")):
            pass
    assert failed["last_failure"].startswith("OSError: password=")
    assert "s3cret" not in failed["last_failure"]
    assert len(failed["last_failure"]) == 255
    assert failed["status"] == "online"


async def test_a_health_check_that_fails_shows_in_the_heartbeat(
    observer: Observer, settings: Settings
) -> None:
    class Sick(Probe):
        def health_check(self) -> dict[str, Any]:
            raise LookupError("no data")

    async with running(Sick(settings)):
        heartbeat = await observer.next("probe/heartbeat")
    assert heartbeat["status"] == "degraded"
    assert heartbeat["reasons"] == ["health_check: LookupError('no data')"]


async def test_a_health_check_that_quotes_a_secret_does_not_spread_it(
    observer: Observer, settings: Settings
) -> None:
    class Talkative(Probe):
        def health_check(self) -> dict[str, Any]:
            raise LookupError("no answer from http://user:hunter2@meter")

    async with running(Talkative(settings)):
        heartbeat = await observer.next("probe/heartbeat")
    assert "meter" in heartbeat["reasons"][0]
    assert "hunter2" not in heartbeat["reasons"][0]


async def test_a_health_check_that_is_no_json_shows_in_the_heartbeat(
    observer: Observer, settings: Settings
) -> None:
    class Odd(Probe):
        def health_check(self) -> dict[str, Any]:
            return {"ratio": float("nan")}

    async with running(Odd(settings)):
        heartbeat = await observer.next("probe/heartbeat")
    assert heartbeat["status"] == "degraded"
    assert "cannot be encoded as JSON" in heartbeat["reasons"][0]


@pytest.mark.parametrize("reasons", [5, "disk full", [1]])
def test_reasons_that_are_not_texts_show_in_the_heartbeat(
    settings: Settings, reasons: object
) -> None:
    class Vague(Probe):
        def health_check(self) -> dict[str, Any]:
            return {"reasons": reasons}

    report = Vague(settings).health_report()
    assert report["status"] == "degraded"
    assert report["reasons"][0].startswith("health_check: reasons")


async def test_a_heartbeat_that_cannot_be_sent_is_followed_by_the_next(
    make_settings: MakeSettings,
) -> None:
    tried = asyncio.Semaphore(0)

    class Unlucky(Probe):
        async def publish(self, *_arguments: object, **_options: object) -> None:
            tried.release()
            raise NotConnectedError

    service = Unlucky(make_settings(heartbeat_interval_seconds=0.01))
    async with running(service), asyncio.timeout(PATIENCE_SECONDS):
        await tried.acquire()
        await tried.acquire()


async def test_no_heartbeat_when_it_is_switched_off(
    observer: Observer, make_settings: MakeSettings
) -> None:
    async with running(Probe(make_settings(heartbeat_interval_seconds=0))) as probe:
        assert {task.get_name() for task in asyncio.all_tasks()} >= {"run", "health"}
        assert "heartbeat" not in {task.get_name() for task in asyncio.all_tasks()}
        await probe.publish("done", {})
        await observer.next("probe/done")


async def test_the_end_of_run_ends_the_service(observer: Observer, settings: Settings) -> None:
    class Short(Probe):
        async def run(self) -> None:
            self.mqtt.connect_background()
            await self.mqtt.wait_connected(PATIENCE_SECONDS)

    await ended(Short(settings))
    await observer.next("probe/availability", status="offline", reason="stopped")


async def test_a_crash_of_run_is_raised_after_the_orderly_stop(
    observer: Observer, settings: Settings
) -> None:
    class Broken(Probe):
        async def run(self) -> None:
            self.mqtt.connect_background()
            await self.mqtt.wait_connected(PATIENCE_SECONDS)
            raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        await ended(Broken(settings))
    await observer.next("probe/availability", status="offline", reason="crashed")


async def test_the_crash_of_a_task_ends_the_service(settings: Settings) -> None:
    async def work() -> None:
        raise LookupError("broken")

    class Parent(Probe):
        async def run(self) -> None:
            self.create_task(work(), name="work")
            await asyncio.Event().wait()

    with structlog.testing.capture_logs() as lines, pytest.raises(LookupError, match="broken"):
        await ended(Parent(settings))
    assert [line["task"] for line in lines if line["event"] == "task_crashed"] == ["work"]


async def test_the_first_crash_is_the_one_that_is_raised(settings: Settings) -> None:
    async def fail(message: str) -> None:
        raise LookupError(message)

    class Parent(Probe):
        async def run(self) -> None:
            self.create_task(fail("first"), name="first")
            self.create_task(fail("second"), name="second")
            await asyncio.Event().wait()

    with pytest.raises(LookupError, match="first"):
        await ended(Parent(settings))


async def test_a_run_that_is_cancelled_from_within_is_a_crash(settings: Settings) -> None:
    class Cancelled(Probe):
        async def run(self) -> None:
            work = asyncio.create_task(asyncio.Event().wait())
            work.cancel()
            await work

    with pytest.raises(RuntimeError, match=r"run\(\) was cancelled"):
        await ended(Cancelled(settings))


async def test_the_next_start_goes_on_with_the_session(settings: Settings) -> None:
    client_ids = set()
    for _ in range(2):
        async with running(Probe(settings)) as probe, running(Probe(settings)) as other:
            client_ids.add(probe.mqtt.client_id)
            assert other.mqtt.client_id != probe.mqtt.client_id
    assert len(client_ids) == 1


async def test_tasks_are_cancelled_after_run_has_ended(settings: Settings) -> None:
    order = []

    class Parent(Probe):
        async def run(self) -> None:
            self.create_task(self.work(), name="work")
            await asyncio.sleep(0)
            self.stop()
            await self.wait_for_shutdown()
            order.append("run")

        async def work(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                order.append("work")

        async def shutdown(self) -> None:
            order.append("shutdown")
            await super().shutdown()

    await ended(Parent(settings))
    assert order == ["run", "work", "shutdown"]


async def test_handlers_end_before_what_they_need(observer: Observer, settings: Settings) -> None:
    order: list[str] = []

    class Workshop(Probe):
        def __init__(self, settings: Settings) -> None:
            super().__init__(settings)
            self.started, self.ran = asyncio.Event(), asyncio.Event()
            self.jobs = asyncio.Queue[asyncio.Future[None]]()

        async def run(self) -> None:
            self._clients.callback(order.append, "clients")
            self.create_task(self.work(), name="work")
            self.mqtt.subscribe(self.topic("job"), self.handle)
            await super().run()
            self.ran.set()

        async def handle(self, _topic: str, _payload: object) -> None:
            self.started.set()
            await self.ran.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            job: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.jobs.put_nowait(job)
            await job
            order.append("handler")

        async def work(self) -> None:
            try:
                while True:
                    (await self.jobs.get()).set_result(None)
            finally:
                order.append("task")

    async with running(Workshop(settings)) as workshop:
        await observer.next("probe/availability", status="online")
        observer.publish("probe/job", {})
        await workshop.started.wait()
    assert order == ["handler", "task", "clients"]
    await observer.next("probe/availability", status="offline", reason="stopped")


async def test_a_task_that_cannot_be_cancelled_is_named_and_left_behind(
    make_settings: MakeSettings,
) -> None:
    release = asyncio.Event()

    class Stubborn(Probe):
        async def run(self) -> None:
            self.stop()
            while not release.is_set():
                with suppress(asyncio.CancelledError):
                    await release.wait()

    with structlog.testing.capture_logs() as lines:
        await ended(Stubborn(make_settings(shutdown_timeout_seconds=0.2)))
    assert [line["task"] for line in lines if line["event"] == "task_not_cancelled"] == ["run"]
    release.set()


async def test_shutdown_may_be_called_twice_and_a_client_that_fails_is_logged(
    settings: Settings,
) -> None:
    class Failing(Probe):
        async def run(self) -> None:
            self._clients.push_async_callback(self.fail)

        async def fail(self) -> None:
            raise LookupError("broken")

    service = Failing(settings)
    with structlog.testing.capture_logs() as lines:
        await ended(service)
        await service.shutdown()
    assert [line["part"] for line in lines if line["event"] == "close_failed"] == ["clients"]


async def test_a_shutdown_that_hangs_is_ended_and_the_clients_are_closed(
    observer: Observer, make_settings: MakeSettings
) -> None:
    class Hanging(Probe):
        async def run(self) -> None:
            self.mqtt.connect_background()
            await self.mqtt.wait_connected()

        async def shutdown(self) -> None:
            await asyncio.Event().wait()

    with structlog.testing.capture_logs() as lines, pytest.raises(TimeoutError):
        await ended(Hanging(make_settings(shutdown_timeout_seconds=3.0)))
    assert [line["part"] for line in lines if line["event"] == "close_failed"] == ["service"]
    await observer.next("probe/availability", status="offline", reason="crashed")


async def test_a_shutdown_that_awaits_a_cancelled_task_has_failed(
    observer: Observer, settings: Settings
) -> None:
    class Cancelling(Probe):
        async def run(self) -> None:
            self.mqtt.connect_background()
            await self.mqtt.wait_connected()

        async def shutdown(self) -> None:
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task

    with pytest.raises(RuntimeError, match="service was cancelled"):
        await ended(Cancelling(settings))
    await observer.next("probe/availability", status="offline", reason="crashed")


async def test_wait_for_shutdown_tells_time_from_stop(settings: Settings) -> None:
    service = Probe(settings)
    assert not await service.wait_for_shutdown(0)
    service.stop()
    assert await service.wait_for_shutdown()


async def test_a_cancelled_start_stops_in_order(observer: Observer, settings: Settings) -> None:
    task = asyncio.create_task(Probe(settings).start())
    await observer.next("probe/availability", status="online")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await observer.next("probe/availability", status="offline", reason="stopped")


async def test_the_debugger_hook_is_for_the_named_service_only(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    async def wait(stopping: asyncio.Event, _logger: object) -> None:
        waited.append(stopping)
        stopping.set()

    monkeypatch.setattr("shared.service.wait_for_debugger", wait)
    await ended(Own(OwnSettings(debug_service="other", data_dir=make_settings().data_dir)))
    assert waited == []
    await ended(Own(OwnSettings(debug_service="own", data_dir=make_settings().data_dir)))
    assert len(waited) == 1


# Health


async def test_a_loop_has_to_report_success(
    observer: Observer, make_settings: MakeSettings
) -> None:
    settings = make_settings(
        health_max_age_seconds=0.4, heartbeat_interval_seconds=0.05, health_watchdog=False
    )

    class Loop(Probe):
        succeeds = True

        async def run(self) -> None:
            self.mqtt.connect_background()
            while not await self.wait_for_shutdown(0.01):
                if self.succeeds:
                    self.touch_healthcheck()

    async with running(Loop(settings)) as loop:
        await observer.next("probe/heartbeat", status="online")
        content = json.loads(settings.health_path.read_text(encoding="utf-8"))
        assert content.keys() == {"pid", "monotonic", "time"}
        loop.succeeds = False
        heartbeat = await observer.next("probe/heartbeat", status="degraded")
        assert heartbeat["reasons"][0].startswith("no success of ")
        loop.succeeds = True
        await observer.next("probe/heartbeat", status="online")


async def test_a_broker_that_is_away_too_long_shows_and_its_return_heals(
    mosquitto: Mosquitto, make_settings: MakeSettings
) -> None:
    settings = make_settings(
        mqtt_port=mosquitto.port, health_max_age_seconds=0.2, health_watchdog=False
    )
    async with running(Probe(settings)) as service, asyncio.timeout(PATIENCE_SECONDS):
        mosquitto.stop()
        while service._heartbeat()["status"] == "online":
            await service.wait_for_shutdown(0.02)
        mosquitto.start()
        await service.mqtt.wait_connected()
        assert service._heartbeat()["status"] == "online"


async def test_each_loop_has_to_report_success_even_if_both_do_the_same_work(
    observer: Observer, make_settings: MakeSettings
) -> None:
    settings = make_settings(
        health_max_age_seconds=0.4, heartbeat_interval_seconds=0.05, health_watchdog=False
    )

    class Reading(Probe):
        async def run(self) -> None:
            self.mqtt.connect_background()
            for device in ("good", "bad"):
                loop = self.every(0.01, partial(self.read, device))
                self.create_task(loop, name=device)
            await self.wait_for_shutdown()

        async def read(self, device: str) -> None:
            if device == "bad":
                raise LookupError(device)

    async with running(Reading(settings)):
        failing = ""
        while "no success of read 2 " not in failing:
            heartbeat = await observer.next("probe/heartbeat", status="degraded")
            failing = "; ".join(heartbeat["reasons"])


async def test_a_loop_that_was_cancelled_promises_nothing(make_settings: MakeSettings) -> None:
    settings = make_settings(health_max_age_seconds=0.05, health_watchdog=False)

    async def work() -> None: ...

    async with running(Probe(settings)) as service, asyncio.timeout(PATIENCE_SECONDS):
        await service.mqtt.wait_connected()
        loop = service.create_task(service.every(0.01, work), name="work")
        await asyncio.sleep(0)
        loop.cancel()
        await asyncio.wait({loop})
        assert not await service.wait_for_shutdown(0.2)
        assert service.health.reasons == ()


async def test_a_cancelled_future_is_a_failed_cycle(make_settings: MakeSettings) -> None:
    cycles = asyncio.Semaphore(0)

    async def work() -> None:
        cycles.release()
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with running(Probe(make_settings())) as service, asyncio.timeout(PATIENCE_SECONDS):
        service.create_task(service.every(0.01, work), name="work")
        for _ in range(3):
            await cycles.acquire()


@pytest.mark.parametrize("then", ["every", "gather", "wait"])
async def test_a_pause_of_run_promises_nothing(make_settings: MakeSettings, then: str) -> None:
    class Patient(Probe):
        def __init__(self, settings: Settings) -> None:
            super().__init__(settings)
            self.paused = asyncio.Event()

        async def run(self) -> None:
            self.mqtt.connect_background()
            await self.wait_for_shutdown(0.01)
            asyncio.get_running_loop().call_soon(self.paused.set)
            if then == "wait":
                await self.wait_for_shutdown()
            elif then == "every":
                await self.every(0.01, self.work)
            else:
                await asyncio.gather(self.every(0.01, self.work), self.every(0.01, self.work))

        async def work(self) -> None: ...

    async with running(Patient(make_settings())) as service, asyncio.timeout(PATIENCE_SECONDS):
        await service.paused.wait()
        await service.mqtt.wait_connected()
        later = time.monotonic() + 1000
        service._health._clock = lambda: later
        assert not [reason for reason in service.health.reasons if "success of run" in reason]


async def test_waiting_in_a_task_promises_nothing(make_settings: MakeSettings) -> None:
    class Housekeeper(Probe):
        def __init__(self, settings: Settings) -> None:
            super().__init__(settings)
            self.done = asyncio.Event()

        async def run(self) -> None:
            self.create_task(self.keep_house(), name="house")
            await super().run()

        async def keep_house(self) -> None:
            for _ in range(30):
                assert not await self.wait_for_shutdown(0.01)
            self.done.set()

    settings = make_settings(health_max_age_seconds=0.1, health_watchdog=False)
    async with running(Housekeeper(settings)) as service, asyncio.timeout(PATIENCE_SECONDS):
        await service.done.wait()
        assert service._heartbeat()["status"] == "online"


# Messages


async def test_what_is_published_is_stamped(observer: Observer, settings: Settings) -> None:
    class Reading(Message):
        value: float

    async with running(Probe(settings)) as probe:
        await probe.publish("read", {"value": 1})
        first = await observer.next("probe/read")
        with bind_trace_id("0af7"):
            await probe.publish("read", Reading(value=2.5), qos=0, retain=True)
        second = await observer.next("probe/read")
        await probe.publish("read", {"trace_id": "mine", "service": "other"})
        third = await observer.next("probe/read")
    assert first.keys() == {"timestamp", "service", "trace_id", "value"}
    assert Message.model_validate(first).service == "probe"
    assert (second["value"], second["trace_id"]) == (2.5, "0af7")
    assert (third["trace_id"], third["service"]) == ("mine", "other")


async def test_commands_are_answered(observer: Observer, settings: Settings) -> None:
    class Worker(Probe):
        async def run(self) -> None:
            self.on_command("refresh", self.refresh)
            await super().run()

        async def refresh(self, command: Command) -> dict[str, Any]:
            return {"room": (command.model_extra or {})["room"]}

    async with running(Worker(settings)):
        observer.publish(
            "coordinator/command/probe",
            {"command": "refresh", "request_id": "1", "room": "hall", "trace_id": "0af7"},
        )
        reply = await observer.next("probe/response", request_id="1")
        assert (reply["status"], reply["room"], reply["service"]) == ("ok", "hall", "probe")
        assert reply["trace_id"] == "0af7"
        observer.publish("coordinator/command/probe", {"command": "explode"})
        reply = await observer.next("probe/response", command="explode")
        assert reply["status"] == "error"
        observer.publish("coordinator/command/probe", {"command": "refresh", "request_id": "2"})
        reply = await observer.next("probe/response", request_id="2")
        assert reply["error"] == "KeyError: 'room'"
        letter = await observer.next("errors/probe")
        assert letter["error_type"] == "KeyError"


async def test_a_command_that_the_broker_keeps_is_not_run(
    observer: Observer, broker: Broker, make_client: MakeClient, settings: Settings
) -> None:
    topic = f"{settings.topic_prefix}/coordinator/command/probe"
    sender = make_client(broker, "sender")
    sender.connect_background()
    await sender.publish(topic, {"command": "kept"}, retain=True)
    # The broker has handed it to everybody who was there.
    await observer.next("coordinator/command/probe", command="kept")
    async with running(Probe(settings)):
        await sender.publish(topic, {"command": "new"})
        answer = await observer.next("probe/response")
    await sender.publish(topic, None, retain=True)
    assert answer["command"] == "new"


async def test_one_service_sends_another_a_command(broker: Broker, settings: Settings) -> None:
    class Adder(Probe):
        name = "adder"

        async def run(self) -> None:
            self.on_command("add", lambda command: {"sum": sum((command.model_extra or {})["of"])})
            await super().run()

    async with running(Adder(settings)), running(Probe(settings)) as probe:
        reply = await probe.send_command("adder", "add", of=[1, 2], request_id="r")
        again = await probe.send_command("adder", "add", of=[], request_id="r")
    assert (reply["status"], reply["sum"]) == ("ok", 3)
    assert (again["status"], again["sum"]) == ("ok", 3)


async def test_an_answer_that_cannot_be_sent_is_logged(settings: Settings) -> None:
    service = Probe(settings)
    command = Command(command="refresh", request_id="1", reply_to="not/a/topic/#")
    with structlog.testing.capture_logs() as lines:
        await service._commands.handle("", command)
    assert "reply_not_sent" in [line["event"] for line in lines]


# run_service


@pytest.fixture
def environment(broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTT_HOST", broker.host)
    monkeypatch.setenv("MQTT_PORT", str(broker.port))
    monkeypatch.setenv("DATA_DIR", str(settings.data_dir))


class Ending(Probe):
    async def run(self) -> None:
        """Ends at once."""


class Crashing(Probe):
    async def run(self) -> None:
        raise LookupError("broken")


class Unclosable(Ending):
    async def shutdown(self) -> None:
        raise LookupError("still on")


class Unusable(Probe):
    async def run(self) -> None:
        raise ConfigurationError(["ROOM: there is no such room"])


@pytest.mark.usefixtures("environment")
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_service(Ending) == 0
    assert run_service(Crashing) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [crash] = [line for line in lines if line["event"] == "service_crashed"]
    assert crash["exception"][0]["exc_value"] == "broken"
    assert run_service(Unclosable) == 1
    capsys.readouterr()
    assert run_service(Unusable) == 78
    assert capsys.readouterr().err == "probe: ROOM: there is no such room\n"
    monkeypatch.setenv("MQTT_PORT", "none")
    monkeypatch.setenv("LOG_FORMAT", "xml")
    assert run_service(Ending) == 78
    assert [line[:17] for line in capsys.readouterr().err.splitlines()] == [
        "probe: LOG_FORMAT",
        "probe: MQTT_PORT:",
    ]


@pytest.mark.mosquitto
async def test_replicas_with_a_number_share_the_commands(
    make_settings: MakeSettings, observer: Observer
) -> None:
    run_by: list[int] = []

    def replica(number: int) -> Probe:
        def count(_command: Command) -> None:
            run_by.append(number)

        service = Probe(make_settings(instance=number))
        service.on_command("count", count)
        return service

    async with running(replica(1)), running(replica(2)):
        for number in range(20):
            command = {"command": "count", "request_id": str(number)}
            observer.publish("coordinator/command/probe", command)
        for _ in range(20):
            await observer.next("probe/response", status="ok")
    assert len(run_by) == 20
    assert set(run_by) == {1, 2}
