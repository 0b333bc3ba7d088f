"""The same small service on each library: `peers.py LIBRARY MEASUREMENT PORT QOS COUNT`.

Prints `ready`, does its work, and prints a line of JSON. Handlers are coroutines that get a
decoded dict, and publishers pass a dict.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

type Handler = Callable[[dict[str, Any]], Awaitable[None]]
CONCURRENT_PUBLISHERS = 100
PAYLOAD = {"number": 1, "text": "x" * 175}


class Peer(Protocol):
    async def connect(self, port: int, qos: int, handler: Handler) -> None:
        """Connect and hand what arrives on `in` to the handler."""

    async def publish(self, topic: str, payload: dict[str, Any], qos: int) -> None:
        """At QoS 1 return after the acknowledgement."""

    async def close(self) -> None: ...


class Ours:
    def __init__(self, *, max_queued_messages: int) -> None:
        from shared.log import get_logger
        from shared.mqtt import MQTTClient

        self._make = lambda port: MQTTClient(
            "127.0.0.1",
            port,
            service="bench",
            topic_prefix="bench",
            logger=get_logger("bench", level="WARNING"),
            max_queued_messages=max_queued_messages,
        )

    async def connect(self, port: int, qos: int, handler: Handler) -> None:
        async def handle(_topic: str, payload: dict[str, Any]) -> None:
            await handler(payload)

        self._client = self._make(port)
        self._client.subscribe("in", handle, qos=1 if qos else 0)
        self._client.connect_background()
        await self._client.wait_connected()

    async def publish(self, topic: str, payload: dict[str, Any], qos: int) -> None:
        await self._client.publish(topic, payload, qos=1 if qos else 0)

    async def close(self) -> None:
        await self._client.disconnect()


class Paho:
    """The network thread, one hop to a queue of the loop, and nothing else."""

    def __init__(self, **_: int) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_socket_open = self._on_socket_open
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._call(self._connected.set)
        self._client.on_message = lambda _c, _u, message: self._call(
            self._queue.put_nowait, message.payload
        )
        self._client.on_publish = self._on_publish
        self._connected = asyncio.Event()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._acknowledged: dict[int, asyncio.Future[None]] = {}
        self._awaiting = False

    async def connect(self, port: int, qos: int, handler: Handler) -> None:
        self._loop, self._qos = asyncio.get_running_loop(), qos
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        await self._connected.wait()
        self._task = asyncio.create_task(self._consume(handler))

    async def _consume(self, handler: Handler) -> None:
        while True:
            await handler(json.loads(await self._queue.get()))

    async def publish(self, topic: str, payload: dict[str, Any], qos: int) -> None:
        if not qos:
            self._client.publish(topic, json.dumps(payload), 0)
            return
        self._awaiting = True
        future = self._loop.create_future()
        self._acknowledged[self._client.publish(topic, json.dumps(payload), 1).mid] = future
        await future

    async def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _call(self, *call: Any) -> None:
        self._loop.call_soon_threadsafe(*call)

    def _on_socket_open(self, _client: Any, _userdata: object, sock: Any) -> None:
        import socket

        # Every round trip at QoS 1 would take 40 ms otherwise, because of Nagle's algorithm.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(self, client: Any, *_: object) -> None:
        client.subscribe("in", self._qos)

    def _on_publish(self, _client: Any, _userdata: object, mid: int, *_: object) -> None:
        if self._awaiting:
            self._call(self._done, mid)

    def _done(self, mid: int) -> None:
        if future := self._acknowledged.pop(mid, None):
            future.set_result(None)


class Aiomqtt:
    def __init__(self, **_: int) -> None:
        import aiomqtt

        self._module = aiomqtt

    async def connect(self, port: int, qos: int, handler: Handler) -> None:
        client = self._module.Client("127.0.0.1", port, max_queued_outgoing_messages=0)
        # It warns at every publish while more than ten are pending.
        client.pending_calls_threshold = CONCURRENT_PUBLISHERS
        self._client = await client.__aenter__()
        await client.subscribe("in", qos)
        self._task = asyncio.create_task(self._consume(handler))

    async def _consume(self, handler: Handler) -> None:
        async for message in self._client.messages:
            await handler(json.loads(message.payload))

    async def publish(self, topic: str, payload: dict[str, Any], qos: int) -> None:
        await self._client.publish(topic, json.dumps(payload), qos)

    async def close(self) -> None:
        self._task.cancel()
        await self._client.__aexit__(None, None, None)


PEERS: dict[str, Callable[..., Peer]] = {"ours": Ours, "paho": Paho, "aiomqtt": Aiomqtt}


def say(line: str) -> None:
    print(line, flush=True)


async def receive(name: str, port: int, qos: int, count: int) -> dict[str, float]:
    """When the last of `count` messages was handled."""
    # The broker delivers at once what the others take into an endless queue as well.
    peer = PEERS[name](max_queued_messages=count)
    handled, done = 0, asyncio.Event()

    async def handle(payload: dict[str, Any]) -> None:
        nonlocal handled
        handled += "number" in payload
        if handled == count:
            done.set()

    await peer.connect(port, qos, handle)
    say("ready")
    await done.wait()
    ended = time.monotonic()
    await peer.close()
    return {"ended": ended}


async def publish(name: str, port: int, qos: int, count: int) -> dict[str, float]:
    """Messages a second, until the last one came back from the broker."""
    peer = PEERS[name](max_queued_messages=1000)
    came_back = asyncio.Event()

    async def handle(_payload: dict[str, Any]) -> None:
        came_back.set()

    await peer.connect(port, qos, handle)
    numbers = iter(range(count))

    async def publish_some() -> None:
        for _ in numbers:
            await peer.publish("away", PAYLOAD, qos)

    say("ready")
    began = time.monotonic()
    if qos:
        await asyncio.gather(*(publish_some() for _ in range(CONCURRENT_PUBLISHERS)))
    else:
        await publish_some()
    await peer.publish("in", PAYLOAD, qos)
    await came_back.wait()
    ended = time.monotonic()
    await peer.close()
    return {"rate": count / (ended - began)}


async def answer(name: str, port: int, qos: int, _count: int) -> dict[str, float]:
    """Answers until its input is closed."""
    peer = PEERS[name](max_queued_messages=1000)

    async def handle(payload: dict[str, Any]) -> None:
        await peer.publish(payload["reply_to"], {"request_id": payload["request_id"]}, qos)

    await peer.connect(port, qos, handle)
    say("ready")
    await asyncio.to_thread(sys.stdin.read)
    await peer.close()
    return {}


async def start(name: str, port: int, _qos: int, _count: int) -> dict[str, float]:
    """CPU time of the process up to its client, and its memory when connected and idle."""
    peer = PEERS[name]()
    cpu_seconds = time.process_time()

    async def handle(_payload: dict[str, Any]) -> None: ...

    await peer.connect(port, 0, handle)
    rss_mib = await idle_rss_mib()
    await peer.close()
    return {"cpu_seconds": cpu_seconds, "rss_mib": rss_mib}


def start_service() -> dict[str, float]:
    """The same for a service, which is started as in a container."""
    from shared.config import Settings
    from shared.service import BaseService, run_service

    result: dict[str, float] = {}

    class Service(BaseService[Settings]):
        name = "bench"

        async def run(self) -> None:
            result["cpu_seconds"] = time.process_time()
            self.mqtt.connect_background()
            await self.mqtt.wait_connected()
            result["rss_mib"] = await idle_rss_mib()

    if run_service(Service):
        raise SystemExit(1)
    return result


async def idle_rss_mib() -> float:
    await asyncio.sleep(1)
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


if __name__ == "__main__":
    library, measurement, *numbers = sys.argv[1:]
    if (library, measurement) == ("ours", "start"):
        say(json.dumps(start_service()))
        sys.exit()
    work = {"receive": receive, "publish": publish, "answer": answer, "start": start}[measurement]
    say(json.dumps(asyncio.run(work(library, *map(int, numbers)))))
