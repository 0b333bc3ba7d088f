"""A client that sees every message below a topic prefix, and is independent of `shared.mqtt`."""

import asyncio
import json
from contextlib import suppress
from typing import Any, Self

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

PATIENCE_SECONDS = 30.0


def disconnect(client: Client) -> None:
    """Disconnect a client of paho, and wait for the end of its network thread."""
    client.disconnect()
    # paho drops its reference to the thread when the thread ends during the call.
    with suppress(AttributeError):
        client.loop_stop()


class Observer:
    """Use as `async with Observer(host, port, "prefix") as observer`."""

    def __init__(self, host: str, port: int, prefix: str) -> None:
        self._address = (host, port)
        self._prefix = prefix
        self._loop = asyncio.get_running_loop()
        self._subscribed = asyncio.Event()
        self.seen: list[str] = []
        self._messages: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._call(self._subscribed.set)
        self._client.on_message = self._on_message

    async def __aenter__(self) -> Self:
        self._client.connect_async(*self._address)
        self._client.loop_start()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._subscribed.wait()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await asyncio.to_thread(disconnect, self._client)

    async def next(self, topic: str, **fields: object) -> Any:
        """Return the next message on `{prefix}/{topic}` with these fields, and skip all others."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                got, payload = await self._messages.get()
                self.seen.append(got)
                has_fields = not fields or (
                    isinstance(payload, dict) and fields.items() <= payload.items()
                )
                if got == f"{self._prefix}/{topic}" and has_fields:
                    return payload

    def publish(self, topic: str, payload: object) -> None:
        self._client.publish(f"{self._prefix}/{topic}", json.dumps(payload), qos=1)

    def _on_connect(
        self,
        client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        _reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        client.subscribe(f"{self._prefix}/#", qos=1)

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        payload = json.loads(message.payload) if message.payload else None
        self._call(self._messages.put_nowait, (message.topic, payload))

    def _call(self, *call: Any) -> None:
        self._loop.call_soon_threadsafe(*call)
