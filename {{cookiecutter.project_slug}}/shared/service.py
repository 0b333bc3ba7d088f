"""The base class of every service: its parts, its lifecycle and its orderly end."""

import asyncio
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import cached_property
from types import get_original_bases
from typing import {% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}TYPE_CHECKING, {% endif %}Any, ClassVar, get_args, get_origin

import psutil
from pydantic import BaseModel

from shared.commands import Answer, CommandHandler, CommandRouter
from shared.config import ConfigurationError, Settings, load_settings
from shared.debugger import wait_for_debugger
from shared.health import HealthMonitor, HealthStatus
from shared.log import get_logger
from shared.mqtt import MQTTClient, MQTTError, QoS, encode
from shared.redaction import redact_text
from shared.schemas import Command, dump_message
from shared.session import Session
from shared.signals import stop_on_signal
from shared.tracing import current_trace_id, new_trace_id

{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}
if TYPE_CHECKING:
{% if cookiecutter.include_home_assistant %}
    from shared.home_assistant import HomeAssistantClient
{% endif %}
{% if cookiecutter.include_influxdb %}
    from shared.influx import InfluxClient
{% endif %}

{% endif %}
HEALTH_FILE_NAME = "healthcheck"
SESSION_FILE_NAME = "mqtt-session.json"
_LINGERING_THREADS_SECONDS = 1.0
# Shares of the time for an orderly stop; what is left is for the other clients.
_SHARE_OF_HANDLERS = 0.2
_SHARE_OF_RUN = 0.15
_SHARE_OF_CANCELLATION = 0.15
_SHARE_OF_BROKER = 0.3


class BaseService[S: Settings](ABC):
    """One service: `class MyService(BaseService[MySettings])` with a `name` and a `run()`.

    The settings class is taken from the square brackets. Everything runs on one event loop.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[Settings]] = Settings

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for base in get_original_bases(cls):
            if issubclass(get_origin(base) or base, BaseService):
                for argument in get_args(base):
                    if isinstance(argument, type):
                        cls.settings_class = argument

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.logger = get_logger(
            self.name, level=settings.log_level, log_format=settings.log_format
        )
        self._started = time.monotonic()
        self._stopping = asyncio.Event()
        self._stop_deadline = float("inf")
        self._closed = False
        self._crash: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._run_task: asyncio.Task[None] | None = None
        self._clients = AsyncExitStack()
        self._commands = CommandRouter(
            self._respond, self.logger, max_age_seconds=settings.command_max_age_seconds
        )
        self._health = HealthMonitor(
            settings.data_dir / HEALTH_FILE_NAME,
            max_age_seconds=settings.health_max_age_seconds,
            logger=self.logger,
        )

    @cached_property
    def mqtt(self) -> MQTTClient:
        session = Session.claim(self.settings.data_dir / SESSION_FILE_NAME, self.name, self.logger)
        self._clients.callback(session.close)
        return MQTTClient.from_settings(self.settings, self.name, self.logger, session=session)
{% if cookiecutter.include_home_assistant %}

    @cached_property
    def ha(self) -> "HomeAssistantClient":
        """Home Assistant, imported and created at first use."""
        from shared.home_assistant import HomeAssistantClient  # noqa: PLC0415

        client = HomeAssistantClient.from_settings(self.settings, self.logger)
        self._clients.push_async_callback(client.aclose)
        return client
{% endif %}
{% if cookiecutter.include_influxdb %}

    @cached_property
    def influx(self) -> "InfluxClient":
        """InfluxDB, imported and created at first use."""
        from shared.influx import InfluxClient  # noqa: PLC0415

        client = InfluxClient.from_settings(self.settings, self.logger)
        self._clients.push_async_callback(client.aclose)
        return client
{% endif %}

    # What a service implements

    @abstractmethod
    async def run(self) -> None:
        """The service's work; its return stops the service, its exception too, with exit code 1."""

    def health_check(self) -> dict[str, Any]:
        """Fields to add to the heartbeat; `status` and `reasons` override ours."""
        return {}

    # What a service uses

    def topic(self, event: str) -> str:
        return f"{self.settings.topic_prefix}/{self.name}/{event}"

    async def publish(
        self,
        event: str,
        data: Mapping[str, Any] | BaseModel,
        *,
        qos: QoS = 1,
        retain: bool = False,
    ) -> None:
        """Publish on `{prefix}/{name}/{event}`, stamped with time, service and trace id.

        Raises MQTTError.
        """
        await self.mqtt.publish(self.topic(event), self._stamped(data), qos=qos, retain=retain)

    def on_command(self, name: str, handler: CommandHandler) -> None:
        """Let `handler` answer `{"command": name}` on this service's command topic.

        What it returns goes into the answer. A command that arrives twice is handled once, unless
        it failed, and with a `request_id` answered twice.
        """
        self._commands.register(name, handler)

    async def send_command(
        self, target: str, command: str, *, timeout_seconds: float = 5.0, **fields: object
    ) -> dict[str, Any]:
        """Send a command to the service `target` and return its answer.

        Its `status` is `ok` or `error`. Raises RequestTimeoutError when none comes; asked again
        with the same `request_id` (one of the `fields`), the target answers without doing its
        work twice, unless it failed.
        """
        payload = self._stamped({"command": command, **fields})
        return await self.mqtt.request(
            self._command_topic(target), payload, timeout_seconds=timeout_seconds
        )

    def create_task[T](self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task that belongs to the service.

        It is cancelled when the service stops; its exception stops the service with exit code 1.
        """
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    async def wait_for_shutdown(self, timeout_seconds: float | None = None) -> bool:
        """Sleep until the service is to stop (True) or the time is over (False).

        A `run()` that waits with a timeout is a loop, and promises to call
        `touch_healthcheck()` at least once in a round.
        """
        if timeout_seconds is not None and asyncio.current_task() is self._run_task:
            self._health.expect_success_every(timeout_seconds)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def touch_healthcheck(self) -> None:
        """Report a success; call it after each round that did what it should."""
        self._health.record_success()

    @property
    def health(self) -> HealthStatus:
        """What the health file is made from, without what `health_check()` says."""
        return self._health.status(self.mqtt)

    def health_report(self) -> dict[str, Any]:
        """`status` and `reasons` as others are to see them, with what `health_check()` says."""
        health = self.health
        report = {
            "status": "online" if health.healthy else "degraded",
            "reasons": list(health.reasons),
        }
        try:
            fields = self.health_check()
            encode(fields)
        except Exception as error:
            self.logger.exception("health_check_failed")
            reason = f"health_check: {redact_text(repr(error))}"
            return report | {"status": "degraded", "reasons": [reason]}
        return report | fields

    def stop(self, reason: str = "stop() was called") -> None:
        """Ask for an orderly stop; returns at once."""
        if self._stopping.is_set():
            return
        self.logger.info("service_stopping", reason=reason)
        self._stop_deadline = time.monotonic() + self.settings.shutdown_timeout_seconds
        self._stopping.set()

    # Lifecycle

    async def start(self) -> None:
        """Run the service until a signal, `stop()`, the end of `run()` or a crash.

        What crashed it is raised after the orderly stop. A second signal ends the process.
        """
        with stop_on_signal(self.stop):
            try:
                await self._serve()
            finally:
                self.stop("start() has ended")
                await self._drain()
                await self._end_tasks()
                await self.shutdown()
        if self._crash is not None:
            raise self._crash
        self.logger.info("service_stopped")

    async def shutdown(self) -> None:
        """Say goodbye to the broker and close all clients; a second call does nothing.

        When a service extends it, `run()` has ended and the connection is still up.
        """
        self.stop("shutdown() was called")
        if self._closed:
            return
        self._closed = True
        if "mqtt" in vars(self):
            share = self._share(_SHARE_OF_BROKER)
            await self._close("mqtt", self.mqtt.disconnect(timeout_seconds=share), share + 0.5)
        await self._close("clients", self._clients.aclose(), self._time_left())

    async def _serve(self) -> None:
        self._health.forget_previous_run()
        if self.settings.debug_service == self.name:
            await wait_for_debugger(self._stopping, self.logger)
        if self._stopping.is_set():
            return
        self.logger.info("service_starting")
        # A command that somebody has retained would be run again with every connection.
        self.mqtt.subscribe(
            self._command_topic(self.name), self._commands.handle, model=Command, retained=False
        )
        self.create_task(self._watch_health(), name="health")
        if self.settings.heartbeat_interval_seconds:
            self.create_task(self._send_heartbeats(), name="heartbeat")
        self._run_task = self.create_task(self.run(), name="run")
        await self._stopping.wait()

    async def _drain(self) -> None:
        # While the tasks run that a handler may wait for, and the clients that it may use.
        if "mqtt" in vars(self):
            share = self._share(_SHARE_OF_HANDLERS)
            await self._close("handlers", self.mqtt.drain(timeout_seconds=share), share + 0.5)

    async def _end_tasks(self) -> None:
        if self._run_task is not None:
            await asyncio.wait({self._run_task}, timeout=self._share(_SHARE_OF_RUN))
        pending = set(self._tasks)
        for task in pending:
            task.cancel()
        if pending:
            timeout = self._share(_SHARE_OF_CANCELLATION)
            _, stuck = await asyncio.wait(pending, timeout=timeout)
            for task in stuck:
                self.logger.error("task_not_cancelled", task=task.get_name())

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
        elif task is self._run_task and not self._stopping.is_set():
            error = RuntimeError("run() was cancelled, and not by a stop")
        else:
            error = None
        if error is not None:
            self.logger.error("task_crashed", task=task.get_name(), error=error)
            self._crash = self._crash or error
            self.stop(f"task {task.get_name()} crashed")
        elif task is self._run_task:
            self.stop("run() has ended")

    async def _close(self, part: str, closing: Awaitable[None], timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await closing
        except Exception:
            self.logger.exception("close_failed", part=part)

    def _share(self, share: float) -> float:
        return self.settings.shutdown_timeout_seconds * share

    def _time_left(self) -> float:
        return max(self._stop_deadline - time.monotonic(), 1.0)

    # Messages of the library itself

    def _command_topic(self, service: str) -> str:
        return f"{self.settings.topic_prefix}/coordinator/command/{service}"

    def _stamped(self, data: Mapping[str, Any] | BaseModel) -> dict[str, Any]:
        if isinstance(data, BaseModel):
            data = dump_message(data)
        return {
            "timestamp": datetime.now(UTC).isoformat(),
            "service": self.name,
            "trace_id": current_trace_id() or new_trace_id(),
            **data,
        }

    async def _respond(self, command: Command, answer: Answer) -> None:
        try:
            await self.mqtt.respond(command.model_dump(mode="json"), self._stamped(answer))
        except MQTTError as error:
            self.logger.warning("reply_not_sent", command=command.command, error=error)

    async def _watch_health(self) -> None:
        await self.mqtt.wait_connected()
        while True:
            self._health.update(self.mqtt)
            await asyncio.sleep(self._health.tick_seconds)

    async def _send_heartbeats(self) -> None:
        while True:
            await self.mqtt.wait_connected()
            try:
                # QoS 0: a heartbeat that comes late is worth nothing.
                await self.publish("heartbeat", self._heartbeat(), qos=0)
            except MQTTError as error:
                self.logger.debug("heartbeat_not_sent", error=error)
            await asyncio.sleep(self.settings.heartbeat_interval_seconds)

    def _heartbeat(self) -> dict[str, Any]:
        return {
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "memory_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
            **self.health_report(),
        }


def run_service(service_class: type[BaseService[Any]]) -> int:
    """Run a service to its end and return the exit code.

    0 after an orderly stop, 1 after a crash, 78 (EX_CONFIG) with unusable settings, each problem
    as one line on stderr.
    """
    code = 1
    runner = asyncio.Runner()
    try:
        settings = load_settings(service_class.settings_class)
        code = runner.run(_run(service_class, settings))
    except ConfigurationError as error:
        for problem in error.problems:
            sys.stderr.write(f"{service_class.name}: {problem}\n")
        code = os.EX_CONFIG
    finally:
        # Closing joins the threads of `asyncio.to_thread`, and one may never end.
        watchdog = threading.Timer(_LINGERING_THREADS_SECONDS, os._exit, args=[code])
        watchdog.daemon = True
        watchdog.start()
        runner.close()
        watchdog.cancel()
    return code


async def _run(service_class: type[BaseService[Any]], settings: Settings) -> int:
    service = service_class(settings)
    try:
        await service.start()
    except ConfigurationError:
        raise
    except Exception:
        service.logger.exception("service_crashed")
        return 1
    return 0
