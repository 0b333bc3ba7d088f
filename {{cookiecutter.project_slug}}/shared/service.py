"""Base class of all services: clients, lifecycle and orderly stop."""

import asyncio
import inspect
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping{{ ", Sequence" if cookiecutter.include_home_assistant }}
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import cached_property
from types import FrameType, get_original_bases
from typing import {% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}TYPE_CHECKING, {% endif %}Any, ClassVar, get_args, get_origin, overload

import psutil
from pydantic import BaseModel, ValidationError

from shared.commands import CommandHandler, CommandRouter, Reply
from shared.config import ConfigurationError, Settings, load_settings
from shared.cycles import FailureLog, has_changed
from shared.debugger import wait_for_debugger
from shared.errors import is_cancellation
from shared.health import HealthMonitor, HealthStatus
from shared.log import get_logger
from shared.mqtt import (
    CommandError,
    MQTTClient,
    MQTTError,
    NotConnectedError,
    PayloadError,
    QoS,
    ServiceOfflineError,
    Session,
    encode,
)
from shared.redaction import redact_text
from shared.schemas import Command, CommandSpec, Heartbeat, {{ "Topic, " if cookiecutter.include_home_assistant }}describe_problems, dump_message
from shared.service_status import OtherServices, ServiceStatus
{% if cookiecutter.include_home_assistant %}
from shared.state import StateFile
{% endif %}
from shared.timestamps import format_utc
from shared.tracing import bind_trace_id, current_trace_id, new_trace_id
from shared.watchdog import Watchdog

{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}
if TYPE_CHECKING:
{% if cookiecutter.include_home_assistant %}
    from shared.home_assistant import HomeAssistantClient
{% endif %}
{% if cookiecutter.include_influxdb %}
    from shared.influx import InfluxClient
{% endif %}

{% endif %}
{% if cookiecutter.include_home_assistant %}
DISCOVERY_FILE_NAME = "discovery.json"
{% endif %}
_THREAD_EXIT_SECONDS = 1.0
# A heartbeat is small, and its readers show no more characters.
_MAX_FAILURE_LENGTH = 255
# Shares of the time for an orderly stop. The rest is for the other clients.
_SHARE_OF_HANDLERS = 0.2
_SHARE_OF_RUN = 0.15
_SHARE_OF_CANCELLATION = 0.15
_SHARE_OF_BROKER = 0.3
type _SignalHandler = Callable[[int, FrameType | None], Any] | signal.Handlers


class BaseService[S: Settings](ABC):
    """Base of `class MyService(BaseService[MySettings])` with a `name` and a `run()`.

    The class in square brackets reads the settings. Everything runs on one event loop.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[Settings]] = Settings
{% if cookiecutter.include_home_assistant %}
    topics: ClassVar[Sequence[Topic]] = ()
    """`TOPICS` of schemas.py, whose marks become entities in Home Assistant."""
{% endif %}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls._reject_private_names()
        for base in get_original_bases(cls):
            if issubclass(get_origin(base) or base, BaseService):
                for argument in get_args(base):
                    if isinstance(argument, type):
                        cls.settings_class = argument

    @classmethod
    def _reject_private_names(cls) -> None:
        # The second set holds the attributes that `__init__` assigns.
        used = {*vars(BaseService), *BaseService.__init__.__code__.co_names}
        for name in vars(cls).keys() & used:
            if name.startswith("_") and not name.endswith("__"):
                message = f"{cls.__name__}.{name}: BaseService uses this name. Choose another one."
                raise TypeError(message)

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
        self._last_published: dict[str, tuple[float, dict[str, Any]]] = {}
        self._last_failure: str | None = None
{% if cookiecutter.include_home_assistant %}
        self._buttons: dict[str, str] = {}
{% endif %}
        self._commands = CommandRouter(
            self._send_reply, self.logger, max_age_seconds=settings.command_max_age_seconds
        )
        self._health = HealthMonitor(
            settings.health_path,
            max_age_seconds=settings.health_max_age_seconds,
            logger=self.logger,
        )
        self._watchdog = Watchdog(self.name, settings.health_max_age_seconds)

    @cached_property
    def mqtt(self) -> MQTTClient:
        session = Session.claim(
            self.settings.data_dir,
            self.name,
            self.logger,
            client_id=self.settings.mqtt_client_id.replace("{service}", self.name),
            instance=self.settings.instance,
        )
        self._clients.callback(session.close)
        return MQTTClient.from_settings(self.settings, self.name, self.logger, session=session)
{% if cookiecutter.include_home_assistant %}

    @cached_property
    def ha(self) -> "HomeAssistantClient":
        """Home Assistant client, imported and created at first use."""
        from shared.home_assistant import HomeAssistantClient  # noqa: PLC0415

        return self.add_client(HomeAssistantClient.from_settings(self.settings, self.logger))
{% endif %}
{% if cookiecutter.include_influxdb %}

    @cached_property
    def influx(self) -> "InfluxClient":
        """InfluxDB client, imported and created at first use."""
        from shared.influx import InfluxClient  # noqa: PLC0415

        return self.add_client(InfluxClient.from_settings(self.settings, self.logger))
{% endif %}

    @cached_property
    def _others(self) -> OtherServices:
        return OtherServices(self.mqtt, self.settings.topic_prefix)

    # Methods to implement

    @abstractmethod
    async def run(self) -> None:
        """Do the work. Its return stops the service, and so does an exception, with exit code 1."""

    def health_check(self) -> dict[str, Any]:
        """Return fields for the heartbeat, which may override `status` and `reasons`."""
        return {}

    # Methods to use

    def add_client[C](self, client: C) -> C:
        """Return `client`, which is closed at the end of the service.

        A client has a method `aclose()` or `close()`, async or not. The last client is closed
        first. Raises TypeError for another object.
        """
        close = getattr(client, "aclose", None) or getattr(client, "close", None)
        if not callable(close):
            message = f"{type(client).__name__} must have a method aclose() or close()"
            raise TypeError(message)

        async def close_client() -> None:
            result = close()
            if inspect.isawaitable(result):
                await result

        self._clients.push_async_callback(close_client)
        return client

    def topic(self, event: str) -> str:
        return f"{self.settings.topic_prefix}/{self.name}/{event}"

    async def publish(
        self,
        event: str,
        data: Mapping[str, Any] | BaseModel,
        *,
        qos: QoS = 1,
        retain: bool = False,
        keep_trying: bool = False,
    ) -> None:
        """Publish on `{prefix}/{name}/{event}` with timestamp, service and trace id.

        The arguments are those of `mqtt.publish`. Raises MQTTError.
        """
        await self.mqtt.publish(
            self.topic(event), self._stamped(data), qos=qos, retain=retain, keep_trying=keep_trying
        )

    async def publish_if_changed(
        self,
        event: str,
        data: Mapping[str, Any] | BaseModel,
        *,
        delta: float | Mapping[str, float] = 0.0,
        at_least_every: float | None = None,
        retain: bool = False,
    ) -> bool:
        """Publish if `data` differs from the last published data. Return whether it was published.

        `delta` is the smallest change of a number that counts, for all fields or for each by its
        name. After `at_least_every` seconds the same data is published again. Raises MQTTError.
        """
        content = dump_message(data) if isinstance(data, BaseModel) else dict(data)
        now = time.monotonic()
        published_at, published = self._last_published.get(event, (now, None))
        is_due = at_least_every is not None and now - published_at >= at_least_every
        if published is not None and not is_due and not has_changed(published, content, delta):
            return False
        await self.publish(event, content, retain=retain)
        self._last_published[event] = now, content
        return True

    async def every(self, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        """Call `work` now, and again `seconds` after each call, until the service stops.

        A success counts for the health check. A failed cycle is logged and the next one follows.
        The log has one line without a traceback for an `ExternalError`, such as `APIError` and
        `MQTTError`, and a summary for a failure that is repeated.
        """
        # An earlier wait of run() was a pause, or run() waits again after its next cycle.
        self._health.expect_success_every(None)
        function = getattr(work, "func", work)
        name = getattr(function, "__name__", type(function).__name__)
        with self._health.expect_loop(seconds, name) as loop:
            failures = FailureLog(self.logger, loop)
            while not self._stopping.is_set():
                with bind_trace_id(new_trace_id()):
                    try:
                        await work()
                    except (Exception, asyncio.CancelledError) as error:
                        if is_cancellation(error):
                            raise
                        failures.failed(error)
                        self._last_failure = f"{type(error).__name__}: {error}"
                    else:
                        failures.succeeded()
                        self._health.record_success(loop)
                await self._wait_for_stop(seconds)

    def on_command[A: BaseModel](
        self,
        command: str | CommandSpec[A],
        handler: CommandHandler[A],
        *,
        model: type[A] | None = None,
{% if cookiecutter.include_home_assistant %}
        button: str = "",
{% endif %}
    ) -> None:
        """Call `handler` for `{"command": name}` on the command topic of this service.

        The handler gets the arguments as a `model`, or the whole `Command` without one. Arguments
        that are not valid get an error reply. The result, a mapping or a model, is added to the
        reply. A repeated command is not run again, unless it failed. With a `request_id` it gets
        the same reply again.
{% if cookiecutter.include_home_assistant %}

        `button` is the label of a button in Home Assistant, which sends the command.
{% endif %}
        """
        if isinstance(command, CommandSpec):
            self._commands.register(command.name, handler, command.arguments)
        else:
            self._commands.register(command, handler, model or Command)
{% if cookiecutter.include_home_assistant %}
        if button:
            self._buttons[command.name if isinstance(command, CommandSpec) else command] = button
{% endif %}

    @overload
    async def send_command[R: BaseModel](
        self,
        target: str,
        command: str,
        /,
        *,
        model: type[R],
        timeout_seconds: float = 5.0,
        **fields: object,
    ) -> R: ...
    @overload
    async def send_command(
        self,
        target: str,
        command: str,
        /,
        *,
        model: None = None,
        timeout_seconds: float = 5.0,
        **fields: object,
    ) -> dict[str, Any]: ...
    async def send_command(
        self,
        target: str,
        command: str,
        /,
        *,
        model: type[BaseModel] | None = None,
        timeout_seconds: float = 5.0,
        **fields: object,
    ) -> dict[str, Any] | BaseModel:
        """Send a command to the service `target` and return the reply, as a `model` if one is set.

        If no `model` is set, an error reply does not raise, so check its `status`. The target does
        not start a command after `timeout_seconds`. Pass the same `request_id` to repeat a command
        without running it twice. The `fields` are the arguments of the command, with any names but
        `model`, `timeout_seconds` and the fields of `Command`.

        Raises:
            NotConnectedError: This service is not connected, or it disconnects during the wait.
            ServiceOfflineError: The target is offline. The command is not sent.
            RequestTimeoutError: No reply in time.
            CommandError: With a `model`, the status of the reply is `error`.
            PayloadError: The reply is not a valid `model`.
        """
        if not self.mqtt.connected:
            message = f"no connection to the broker, so {command} was not sent to {target}"
            raise NotConnectedError(message)
        await self._others.wait_known(target)
        if self._others.status(target).status == "offline":
            message = f"{target} is offline, so {command} was not sent"
            raise ServiceOfflineError(message)
        reply = await self.mqtt.request(
            self._command_topic(target),
            self._stamped({"command": command, **fields}),
            timeout_seconds=timeout_seconds,
        )
        if model is None:
            return reply
        if reply.get("status") == "error":
            message = f"{target} {command}: {reply.get('error')}"
            raise CommandError(message)
        try:
            return model.model_validate(reply)
        except ValidationError as error:
            message = f"{target} {command}: not a valid {model.__name__}: "
            raise PayloadError(message + describe_problems(error)) from error

    def service_status(self, name: str) -> ServiceStatus:
        """Return the last availability and heartbeat of another service.

        The first call subscribes to them, so call it once before connecting. The status is
        `unknown` until the broker has sent them.
        """
        return self._others.status(name)

    def service_statuses(self) -> dict[str, ServiceStatus]:
        """Return the status of all services that were seen, by name."""
        return {name: self._others.status(name) for name in self._others.names()}

    def create_task[T](self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task that is cancelled when the service stops.

        An exception of the task stops the service with exit code 1.
        """
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    async def wait_for_shutdown(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the service stops (True) or the timeout is over (False).

        A `run()` that waits with a timeout is a loop, until it waits without one or calls
        `every()`. It must call `touch_healthcheck()` in every successful cycle. `every()` does all
        of this.
        """
        if asyncio.current_task() is self._run_task:
            self._health.expect_success_every(timeout_seconds)
        return await self._wait_for_stop(timeout_seconds)

    def touch_healthcheck(self) -> None:
        """Record a success. Call it after each successful cycle."""
        self._health.record_success()

    @property
    def health(self) -> HealthStatus:
        """Health without the fields of `health_check()`.

        A lost connection shows after a heartbeat interval, because readers expect a heartbeat. The
        health file, for which a container may be restarted, waits for the maximum age.
        """
        return self._health.status(self.mqtt, self.settings.heartbeat_interval_seconds)

    def health_report(self) -> dict[str, Any]:
        """Return `status` and `reasons`, with the fields of `health_check()`."""
        health = self.health
        report = {
            "status": "online" if health.healthy else "degraded",
            "reasons": list(health.reasons),
        }
        try:
            fields = report | self.health_check()
            encode(fields)
            Heartbeat.model_validate({"uptime_seconds": 0, "memory_mb": 0, **fields})
        except Exception as error:
            self.logger.exception("health_check_failed")
            problem = (
                describe_problems(error) if isinstance(error, ValidationError) else repr(error)
            )
            reason = f"health_check: {redact_text(problem)}"
            return report | {"status": "degraded", "reasons": [reason]}
        return fields

    def stop(self, reason: str = "stop() was called") -> None:
        """Request an orderly stop. Returns at once."""
        if self._stopping.is_set():
            return
        self.logger.info("service_stopping", reason=reason)
        self._stop_deadline = time.monotonic() + self.settings.shutdown_timeout_seconds
        self._watchdog.stop()
        self._stopping.set()

    # Lifecycle

    async def start(self) -> None:
        """Run the service until a signal, `stop()`, the end of `run()` or a crash.

        The error of a crash, or of `shutdown()`, is raised after the orderly stop. A second signal
        ends the process.
        """
        with self._stopped_by_signals():
            try:
                await self._serve()
            finally:
                self.stop("start() has ended")
                await self._drain()
                await self._end_tasks()
                # An extended shutdown() may hang or fail before it calls that of the base class.
                failure = await self._close("service", self.shutdown(), self._time_left() + 1.0)
                self._crash = self._crash or failure
                await BaseService.shutdown(self)
        if self._crash is not None:
            raise self._crash
        self.logger.info("service_stopped")

    async def shutdown(self) -> None:
        """Publish the offline message and close all clients. A second call does nothing.

        A service may extend it: `run()` has ended, and the client is still connected.
        """
        self.stop("shutdown() was called")
        if self._closed:
            return
        self._closed = True
        if "mqtt" in vars(self):
            share = self._share(_SHARE_OF_BROKER)
            disconnecting = self.mqtt.disconnect(
                share, reason="crashed" if self._crash else "stopped"
            )
            await self._close("mqtt", disconnecting, share + 0.5)
        await self._close("clients", self._clients.aclose(), self._time_left())

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        _running[self] = asyncio.get_running_loop()
        # `loop.add_signal_handler` would call nothing while the loop is blocked.
        _handle_signals(_on_signal)
        try:
            yield
        finally:
            del _running[self]
            if not _running:
                _handle_signals(signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)

    async def _serve(self) -> None:
        if self.settings.debug_service == self.name:
            await wait_for_debugger(self._stopping, self.logger)
        if self._stopping.is_set():
            return
        self.logger.info("service_starting")
        if self.settings.health_watchdog:
            self._watchdog.start()
        # A retained command would run again on every connection.
        self.mqtt.subscribe(
            self._command_topic(self.name),
            self._commands.handle,
            skip_retained=True,
            # Replicas with a number share the commands. Only one of them runs each.
            shared=self.settings.instance is not None,
        )
        self.create_task(self._watch_network_thread(), name="network")
{% if cookiecutter.include_home_assistant %}
        self._announce_device()
{% endif %}
        self.create_task(self._watch_health(), name="health")
        if self.settings.heartbeat_interval_seconds:
            self.create_task(self._send_heartbeats(), name="heartbeat")
        self._run_task = self.create_task(self.run(), name="run")
        await self._stopping.wait()

{% if cookiecutter.include_home_assistant %}
    def _announce_device(self) -> None:
        state = StateFile(self.settings.data_dir / DISCOVERY_FILE_NAME, self.logger)
        # If the setting is gone, the announcement of an earlier start must be cleared.
        if not self.settings.ha_discovery_prefix and not state.path.exists():
            return
        from shared.announcer import Announcer  # noqa: PLC0415
        from shared.discovery import device_config  # noqa: PLC0415

        Announcer(
            self.mqtt,
            self.settings,
            self.name,
            make_config=lambda: device_config(
                self.settings, self.name, self.topics, self._commands.arguments, self._buttons
            ),
            state=state,
            create_task=self.create_task,
            logger=self.logger,
        )

{% endif %}
    async def _drain(self) -> None:
        # Drain first, because handlers may need running tasks and open clients.
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

    async def _wait_for_stop(self, timeout_seconds: float | None) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
        elif task is self._run_task and not self._stopping.is_set():
            error = RuntimeError("run() was cancelled without a stop")
        else:
            error = None
        if error is not None:
            self.logger.error("task_crashed", task=task.get_name(), error=error)
            self._crash = self._crash or error
            self.stop(f"task {task.get_name()} crashed")
        elif task is self._run_task:
            self.stop("run() has ended")

    async def _close(
        self, part: str, closing: Awaitable[None], timeout_seconds: float
    ) -> Exception | None:
        """Close a part. Return the error, which is logged, or None."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await closing
        except (Exception, asyncio.CancelledError) as error:
            if is_cancellation(error):
                raise
            self.logger.exception("close_failed", part=part)
            # A CancelledError of a task that was awaited would look like one of this task.
            return error if isinstance(error, Exception) else RuntimeError(f"{part} was cancelled")
        return None

    def _share(self, share: float) -> float:
        return self.settings.shutdown_timeout_seconds * share

    def _time_left(self) -> float:
        return max(self._stop_deadline - time.monotonic(), 1.0)

    # Messages of the library

    def _command_topic(self, service: str) -> str:
        return f"{self.settings.topic_prefix}/coordinator/command/{service}"

    def _stamped(self, data: Mapping[str, Any] | BaseModel) -> dict[str, Any]:
        if isinstance(data, BaseModel):
            data = dump_message(data)
        return {
            "timestamp": format_utc(),
            "service": self.name,
            "trace_id": current_trace_id() or new_trace_id(),
            **data,
        }

    async def _send_reply(self, command: Command, reply: Reply) -> None:
        try:
            await self.mqtt.respond(command.model_dump(mode="json"), self._stamped(reply))
        except MQTTError as error:
            self.logger.warning("reply_not_sent", command=command.command, error=error)

    async def _watch_network_thread(self) -> None:
        while True:
            await asyncio.sleep(self._health.tick_seconds)
            if self.mqtt.thread_ended:
                break
        message = "the MQTT network thread has ended"
        raise RuntimeError(message)

    async def _watch_health(self) -> None:
        await self.mqtt.wait_connected()
        while True:
            self._health.update(self.mqtt)
            await asyncio.sleep(self._health.tick_seconds)

    async def _send_heartbeats(self) -> None:
        while True:
            await self.mqtt.wait_connected()
            try:
                # QoS 0, because a late heartbeat has no value.
                await self.publish("heartbeat", self._heartbeat(), qos=0)
            except MQTTError as error:
                self.logger.debug("heartbeat_not_sent", error=error)
            await asyncio.sleep(self.settings.heartbeat_interval_seconds)

    def _heartbeat(self) -> dict[str, Any]:
        report = self.health_report()
        if report["reasons"]:
            self._last_failure = "; ".join(map(str, report["reasons"]))
        failure = self._last_failure and redact_text(self._last_failure)[:_MAX_FAILURE_LENGTH]
        return {
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "memory_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
            "dead_letters": self.mqtt.dead_letters_sent,
            **({"instance": self.settings.instance} if self.settings.instance else {}),
            **({"last_failure": failure} if failure else {}),
            **({"version": self.settings.service_version} if self.settings.service_version else {}),
            **report,
        }


_running: dict[BaseService[Any], asyncio.AbstractEventLoop] = {}


def _on_signal(number: int, _frame: FrameType | None) -> None:
    """Stop all services of this process."""
    # From now on the system ends the process on the next signal, even if the loop is blocked.
    _handle_signals(signal.SIG_DFL)
    for service, loop in _running.items():
        loop.call_soon_threadsafe(service.stop, signal.Signals(number).name)


def _handle_signals(handler: _SignalHandler) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def run_service(service_class: type[BaseService[Any]]) -> int:
    """Run a service to its end and return the exit code.

    The code is 0 after an orderly stop, 1 after a crash or a failed `shutdown()`, and 78
    (EX_CONFIG) for invalid settings. The watchdog ends the process with 70 (EX_SOFTWARE). Each
    problem of the settings is one line on stderr.
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
        # Closing joins the threads of `asyncio.to_thread`, which may never end.
        watchdog = threading.Timer(_THREAD_EXIT_SECONDS, os._exit, args=[code])
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
