"""State changes over the WebSocket API: a scripted server, the fake and a real Home Assistant.

The variables HA_LAB_URL and HA_LAB_TOKEN name the real one, which has `input_boolean.lamp` and
`input_text.note`.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from structlog.stdlib import BoundLogger
from websockets.asyncio.server import ServerConnection, serve

from shared.api_client import APIError, AuthenticationError, NotFoundError
from shared.config import Settings
from shared.home_assistant import HomeAssistantClient, StateChange
from tests.conftest import MakeSettings
from tests.library.probes import LogProbe
from tests.probes import soon, until

TOKEN = "t0ken-of-the-lab"
LAMP = "input_boolean.lamp"


class ScriptedServer:
    """Speaks the WebSocket API, as far as `subscribe_entities` needs it."""

    def __init__(self) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.connections: set[ServerConnection] = set()
        self.subscriptions: list[dict[str, Any]] = []
        self.url = ""

    async def __call__(self, connection: ServerConnection) -> None:
        await self.send(connection, type="auth_required")
        if json.loads(await connection.recv()) != {"type": "auth", "access_token": TOKEN}:
            await self.send(connection, type="auth_invalid", message="Invalid access token")
            return
        await self.send(connection, type="auth_ok")
        subscription = json.loads(await connection.recv())
        self.subscriptions.append(subscription)
        await self.send(connection, id=1, type="result", success=True, result=None)
        states = {key: self.states[key] for key in subscription["entity_ids"] if key in self.states}
        await self.send(connection, id=1, type="event", event={"a": states})
        self.connections.add(connection)
        await connection.wait_closed()
        self.connections.discard(connection)

    async def send(self, connection: ServerConnection, **message: Any) -> None:
        await connection.send(json.dumps(message))

    async def event(self, **event: Any) -> None:
        for connection in self.connections:
            await self.send(connection, id=1, type="event", event=event)

    async def set_state(self, entity_id: str, state: str) -> None:
        self.states[entity_id] = {"s": state, "a": {}}
        await self.event(c={entity_id: {"+": {"s": state}}})


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    async with serve(server, "127.0.0.1", 0) as listener:
        server.url = f"http://127.0.0.1:{next(iter(listener.sockets)).getsockname()[1]}"
        yield server


@pytest.fixture(autouse=True)
def _no_proxy_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("shared.home_assistant.random.uniform", lambda *_: 0.02)


@pytest.fixture
async def client(server: ScriptedServer, logger: BoundLogger) -> HomeAssistantClient:
    return HomeAssistantClient(server.url, TOKEN, logger=logger, timeout_seconds=5)


type World = tuple[HomeAssistantClient, Callable[[str, str], Awaitable[object]]]


@pytest.fixture(params=["server", "fake", pytest.param("real", marks=pytest.mark.home_assistant)])
async def world(
    request: pytest.FixtureRequest,
    server: ScriptedServer,
    make_settings: MakeSettings,
    logger: BoundLogger,
) -> World:
    """A client, and a function that sets the state of an entity."""
    if request.param == "fake":
        fake = request.getfixturevalue("fake_ha")
        fake.states[LAMP] = "off"
        return HomeAssistantClient.from_settings(make_settings(Settings), logger), fake.set_state
    if request.param == "server":
        server.states[LAMP] = {"s": "off", "a": {}}
        return HomeAssistantClient(server.url, TOKEN, logger=logger), server.set_state
    client = real_client(logger)
    await client.write_helper(LAMP, value=False)
    return client, lambda entity_id, state: client.write_helper(entity_id, state == "on")


def real_client(logger: BoundLogger) -> HomeAssistantClient:
    if "HA_LAB_URL" not in os.environ:
        pytest.skip("needs home-assistant")
    return HomeAssistantClient(
        os.environ["HA_LAB_URL"], os.environ["HA_LAB_TOKEN"], logger=logger, timeout_seconds=10
    )


async def test_yields_the_present_state_and_each_change(world: World, log: LogProbe) -> None:
    client, set_state = world
    async with client, aclosing(client.watch(LAMP, "sensor.missing")) as changes:
        first = await soon(anext(changes))
        assert (first.entity_id, first.state, first.previous) == (LAMP, "off", None)
        following = asyncio.create_task(anext(changes))
        await set_state(LAMP, "on")
        second = await soon(following)
        assert (second.entity_id, second.state, second.previous) == (LAMP, "on", "off")
        await set_state(LAMP, "off")
        assert (await soon(anext(changes))).state == "off"


async def test_attributes_are_merged(server: ScriptedServer, client: HomeAssistantClient) -> None:
    server.states = {"sensor.a": {"s": "1", "a": {"unit": "W", "old": 1}}}
    async with aclosing(client.watch("sensor.a")) as changes:
        assert (await soon(anext(changes))).attributes == {"unit": "W", "old": 1}
        following = asyncio.create_task(anext(changes))
        await connected(server)
        difference = {"+": {"a": {"new": 2}}, "-": {"a": ["old"]}}
        await server.event(c={"sensor.a": {"+": {"lu": 1.0}}})
        await server.event(c={"sensor.a": difference})
        change = await soon(following)
        assert (change.state, change.attributes) == ("1", {"unit": "W", "new": 2})


async def test_reconnects_and_yields_what_has_changed_meanwhile(
    server: ScriptedServer, client: HomeAssistantClient, log: LogProbe
) -> None:
    server.states = {"sensor.a": {"s": "1", "a": {}}, "sensor.b": {"s": "1", "a": {}}}
    async with aclosing(client.watch("sensor.a", "sensor.b")) as changes:
        states = [await soon(anext(changes)) for _ in range(2)]
        assert [change.state for change in states] == ["1", "1"]
        following = asyncio.create_task(anext(changes))
        await connected(server)
        server.states["sensor.b"]["s"] = "2"
        for connection in list(server.connections):
            connection.transport.abort()
        change = await soon(following)
        assert (change.entity_id, change.state, change.previous) == ("sensor.b", "2", "1")
        assert len(server.subscriptions) == 2
        assert await log.next("home_assistant_disconnected")


async def test_an_entity_that_was_removed_meanwhile_is_missing_until_it_exists_again(
    server: ScriptedServer, client: HomeAssistantClient, log: LogProbe
) -> None:
    entity = {"s": "1", "a": {}}
    server.states = {"sensor.a": entity}
    async with aclosing(client.watch("sensor.a")) as changes:
        await soon(anext(changes))
        following = asyncio.create_task(anext(changes))
        await connected(server)
        server.states.clear()
        for connection in list(server.connections):
            connection.transport.abort()
        assert await log.next("entity_missing")
        await server.event(a={"sensor.a": entity})
        assert (await soon(following)).state == "1"


async def test_a_server_that_is_away_at_first(logger: BoundLogger, log: LogProbe) -> None:
    server = ScriptedServer()
    server.states = {"sensor.a": {"s": "1", "a": {}}}
    async with serve(server, "127.0.0.1", 0) as listener:
        port = next(iter(listener.sockets)).getsockname()[1]
    client = HomeAssistantClient(f"http://127.0.0.1:{port}", TOKEN, logger=logger)
    async with aclosing(client.watch("sensor.a")) as changes:
        first = asyncio.create_task(anext(changes))
        await log.next("home_assistant_disconnected")
        async with serve(server, "127.0.0.1", port):
            assert (await soon(first)).state == "1"


async def test_a_rejected_token_ends_it(server: ScriptedServer, logger: BoundLogger) -> None:
    client = HomeAssistantClient(server.url, "wrong", logger=logger)
    with pytest.raises(AuthenticationError, match=r"127\.0\.0\.1:\d+/api/websocket: the token"):
        await soon(anext(client.watch("sensor.a")))


async def test_a_proxy_that_cannot_be_used_is_named(
    client: HomeAssistantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:1")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    with pytest.raises(APIError, match="HTTP_PROXY=gopher"):
        await soon(anext(client.watch("sensor.a")))


async def test_an_entity_that_is_removed_is_logged(
    server: ScriptedServer, client: HomeAssistantClient, log: LogProbe
) -> None:
    server.states = {"sensor.a": {"s": "1", "a": {}}}
    async with aclosing(client.watch("sensor.a")) as changes:
        await soon(anext(changes))
        following = asyncio.create_task(anext(changes))
        await connected(server)
        await server.event(r=["sensor.a"])
        await log.next("entity_missing")
        await server.event(a={"sensor.a": {"s": "1", "a": {}}})
        assert await soon(following) == StateChange(
            entity_id="sensor.a", state="1", attributes={}, previous=None
        )


async def connected(server: ScriptedServer) -> None:
    await until(lambda: bool(server.connections))


@pytest.mark.home_assistant
async def test_a_real_home_assistant_takes_and_rejects_values(logger: BoundLogger) -> None:
    async with real_client(logger) as client:
        for value in ("a", "a", "", "b"):
            await client.write_helper("input_text.note", value)
            assert await client.read_str("input_text.note") == value
        with pytest.raises(APIError, match=r"input_text\.note did not accept the value"):
            await client.write_helper("input_text.note", "x" * 101)
        with pytest.raises(NotFoundError, match=r"input_text\.missing"):
            await client.write_helper("input_text.missing", "a")
        with pytest.raises(APIError, match="status 400"):
            await client.call_service("input_button", "reload", return_response=True)


async def test_a_server_with_a_certificate_authority_of_its_own(
    server_tls: ssl.SSLContext,
    certificates: Path,
    make_settings: MakeSettings,
    logger: BoundLogger,
    log: LogProbe,
) -> None:
    server = ScriptedServer()
    server.states = {"sensor.a": {"s": "1", "a": {}}}
    async with serve(server, "127.0.0.1", 0, ssl=server_tls) as listener:
        url = f"https://localhost:{next(iter(listener.sockets)).getsockname()[1]}"
        settings = make_settings(
            Settings, ha_url=url, ha_token=TOKEN, ha_ca_file=certificates / "ca.crt"
        )
        client = HomeAssistantClient.from_settings(settings, logger)
        async with aclosing(client.watch("sensor.a")) as changes:
            assert (await soon(anext(changes))).state == "1"
        async with aclosing(HomeAssistantClient(url, TOKEN, logger=logger).watch("a")) as changes:
            first = asyncio.create_task(anext(changes))
            entry = await log.next("home_assistant_disconnected")
            first.cancel()
            assert "CERTIFICATE_VERIFY_FAILED" in str(entry["error"])
            await asyncio.wait([first])
