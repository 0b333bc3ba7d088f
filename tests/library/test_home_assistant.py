"""Home Assistant's REST API, answered at the transport."""

import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from structlog.stdlib import BoundLogger
from structlog.testing import capture_logs

from shared.api_client import APIConnectionError, APIError, APIResponseError, NotFoundError
from shared.config import ConfigurationError, Settings, load_settings
from shared.home_assistant import HomeAssistantClient
from tests.conftest import MakeSettings
from tests.fakes import FakeHomeAssistant
from tests.library.conftest import ServeHTTP


class HomeAssistant:
    """A server with some states, which remembers the services that are called."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.called: list[tuple[str, object]] = []
        self.is_down = False
        # States that the next call of a service sets.
        self.accepted: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.is_down:
            raise httpx.ConnectError("refused")
        path = request.url.path
        if path == "/api/":
            return httpx.Response(200, json={"message": "API running."})
        if path == "/api/template":
            return httpx.Response(200, text=json.loads(request.content)["template"].upper())
        if path.startswith("/api/services/"):
            service, data = path.removeprefix("/api/services/"), json.loads(request.content)
            self.called.append((service, data))
            for value in self.accepted:
                self.states[data["entity_id"]] = value
            response = {"service_response": {"asked": service}}
            return httpx.Response(200, json=response if request.url.params else [])
        entity_id = path.removeprefix("/api/states/")
        if entity_id not in self.states:
            return httpx.Response(404, json={"message": "Entity not found."})
        return httpx.Response(
            200, json={"entity_id": entity_id, "state": self.states[entity_id], "attributes": {}}
        )


@pytest.fixture
def server() -> HomeAssistant:
    return HomeAssistant()


@pytest.fixture
async def client(server: HomeAssistant, logger: BoundLogger) -> AsyncIterator[HomeAssistantClient]:
    transport = httpx.MockTransport(server)
    async with HomeAssistantClient(
        "http://ha.test:8123", "token", logger=logger, max_retries=0, transport=transport
    ) as client:
        yield client


async def test_takes_its_settings(make_settings: MakeSettings, logger: BoundLogger) -> None:
    settings = make_settings(Settings, ha_url="http://ha.test:8123/", ha_token="t0ken")
    client = HomeAssistantClient.from_settings(settings, logger)
    assert client.base_url == "http://ha.test:8123"


async def test_reads_states(server: HomeAssistant, client: HomeAssistantClient) -> None:
    server.states = {"sensor.power": "4.5"}
    await client.ping()
    assert (await client.get_state("sensor.power"))["state"] == "4.5"
    with pytest.raises(NotFoundError):
        await client.get_state("sensor.other")


async def test_an_entity_id_is_data(server: HomeAssistant, client: HomeAssistantClient) -> None:
    with pytest.raises(NotFoundError):
        await client.get_state("../services/light/turn_on?x=y")
    assert server.called == []


async def test_what_is_no_state_is_an_error(logger: BoundLogger) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=[]))
    async with HomeAssistantClient("http://ha.test", logger=logger, transport=transport) as client:
        with pytest.raises(APIResponseError):
            await client.get_state("sensor.power")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"5", b'{"service_response": null}'])
async def test_an_invalid_response_of_a_service_is_an_error(
    logger: BoundLogger, content: bytes
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=content))
    async with HomeAssistantClient("http://ha.test", logger=logger, transport=transport) as client:
        with pytest.raises(APIResponseError, match=r"ha\.test/api/services/weather/get_forecasts"):
            await client.call_service("weather", "get_forecasts", return_response=True)


@pytest.mark.parametrize("content", [b"", b"{}", b"[5]", b'[{"entity_id": "light.a"}]'])
async def test_invalid_states_are_an_error(logger: BoundLogger, content: bytes) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=content))
    async with HomeAssistantClient("http://ha.test", logger=logger, transport=transport) as client:
        with pytest.raises(APIResponseError, match=r"ha\.test/api/services/light/turn_on"):
            await client.call_service("light", "turn_on")


async def test_calls_services_and_renders_templates(
    server: HomeAssistant, client: HomeAssistantClient
) -> None:
    assert await client.call_service("light", "turn_on", {"entity_id": "light.a"}) == []
    await client.call_service("homeassistant", "restart")
    assert server.called == [
        ("light/turn_on", {"entity_id": "light.a"}),
        ("homeassistant/restart", {}),
    ]
    assert await client.render_template("states('a')") == "STATES('A')"


@pytest.mark.parametrize("state", ["unavailable", "unknown", "", "None"])
async def test_no_value_gives_the_default(
    server: HomeAssistant, client: HomeAssistantClient, state: str
) -> None:
    server.states = {"a.b": state}
    with capture_logs() as logs:
        assert await client.read_float("a.b", 1.5) == 1.5
        assert await client.read_str("a.b", "x") == "x"
        assert await client.read_bool("a.b", default=True) is True
    assert [log["event"] for log in logs] == ["state_without_value"] * 3


async def test_a_missing_entity_and_a_server_that_is_down_give_the_default(
    server: HomeAssistant, client: HomeAssistantClient
) -> None:
    with capture_logs() as logs:
        assert await client.read_float("a.b", 1.5) == 1.5
        server.is_down = True
        assert await client.read_float("a.b", 1.5) == 1.5
    assert [log["event"] for log in logs] == ["entity_missing", "state_not_read"]


async def test_values_are_converted(server: HomeAssistant, client: HomeAssistantClient) -> None:
    server.states = {"s.f": "-4.5", "s.t": "Küche", "s.on": "On", "s.off": "off"}
    assert await client.read_float("s.f") == -4.5
    assert await client.read_str("s.t") == "Küche"
    assert await client.read_bool("s.on") is True
    assert await client.read_bool("s.off", default=True) is False


@pytest.mark.parametrize("state", ["warm", "nan", "inf", "1e999"])
async def test_a_value_of_another_kind_gives_the_default(
    server: HomeAssistant, client: HomeAssistantClient, state: str
) -> None:
    server.states = {"s.t": state}
    with capture_logs() as logs:
        assert await client.read_float("s.t", 20.0) == 20.0
        assert await client.read_bool("s.t", default=True) is True
    assert [log["event"] for log in logs] == ["state_not_a_number", "state_not_a_boolean"]


@pytest.mark.parametrize(
    ("entity_id", "value", "called"),
    [
        ("input_number.a", 4, ("input_number/set_value", {"value": 4}, "4.0")),
        ("input_text.a", "x", ("input_text/set_value", {"value": "x"}, "x")),
        ("input_text.a", "", ("input_text/set_value", {"value": ""}, "")),
        ("input_select.a", "x", ("input_select/select_option", {"option": "x"}, "x")),
        ("input_boolean.a", True, ("input_boolean/turn_on", {}, "on")),
        ("input_boolean.a", False, ("input_boolean/turn_off", {}, "off")),
    ],
)
async def test_writes_helpers(
    server: HomeAssistant,
    client: HomeAssistantClient,
    entity_id: str,
    value: str | float | bool,
    called: tuple[str, dict[str, object], str],
) -> None:
    service, data, state = called
    server.accepted = [state]
    await client.write_helper(entity_id, value)
    assert server.called == [(service, {"entity_id": entity_id, **data})]


async def test_a_helper_that_is_missing(client: HomeAssistantClient) -> None:
    with pytest.raises(NotFoundError, match=r"ha\.test:8123/api/states/input_text\.missing"):
        await client.write_helper("input_text.missing", "x")


@pytest.mark.parametrize(
    ("entity_id", "value"),
    [("input_text.a", "x" * 300), ("input_number.a", 99), ("input_boolean.a", True)],
)
async def test_a_value_that_is_not_accepted(
    server: HomeAssistant, client: HomeAssistantClient, entity_id: str, value: str | float
) -> None:
    server.states[entity_id] = "unavailable"
    with pytest.raises(APIError, match=f"{entity_id} did not accept the value and is 'unavail"):
        await client.write_helper(entity_id, value)


async def test_a_service_with_a_response(client: HomeAssistantClient) -> None:
    response = await client.call_service("weather", "get_forecasts", return_response=True)
    assert response == {"asked": "weather/get_forecasts"}


async def test_writes_nothing_but_helpers(
    server: HomeAssistant, client: HomeAssistantClient
) -> None:
    with pytest.raises(ValueError, match=r"light\.a"):
        await client.write_helper("light.a", "on")
    assert server.called == []


@pytest.mark.parametrize("value", ["off", 0, 1.0])
async def test_a_switch_is_on_or_off(
    server: HomeAssistant, client: HomeAssistantClient, value: str | float
) -> None:
    with pytest.raises(ValueError, match=r"input_boolean\.a must be True or False"):
        await client.write_helper("input_boolean.a", value)
    assert server.called == []


@pytest.mark.parametrize("address", ["meter:8123", "ftp://meter", "http://", "http://meter:port"])
def test_an_address_that_is_not_valid_is_a_problem_at_the_start(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HA_URL", address)
    with pytest.raises(ConfigurationError, match="HA_URL"):
        load_settings(Settings)


async def test_a_server_with_a_certificate_authority_of_its_own(
    serve_http: ServeHTTP,
    server_tls: ssl.SSLContext,
    certificates: Path,
    make_settings: MakeSettings,
    logger: BoundLogger,
) -> None:
    url = serve_http(200, "{}", server_tls)
    settings = make_settings(Settings, ha_url=url, ha_ca_file=certificates / "ca.crt")
    async with HomeAssistantClient.from_settings(settings, logger) as client:
        await client.ping()
    async with HomeAssistantClient(url, max_retries=0, logger=logger) as client:
        with pytest.raises(
            APIConnectionError, match=r"https://localhost:\d+/api/: .*CERTIFICATE_V"
        ):
            await client.ping()


async def test_the_fake_behaves_as_the_server_does(
    fake_ha: FakeHomeAssistant, make_settings: MakeSettings, logger: BoundLogger
) -> None:
    fake_ha.states["input_text.note"] = "a"
    fake_ha.responses["weather.get_forecasts"] = {"weather.home": {"forecast": []}}
    async with HomeAssistantClient.from_settings(make_settings(Settings), logger) as client:
        await client.write_helper("input_text.note", "b")
        with pytest.raises(NotFoundError):
            await client.write_helper("input_text.missing", "b")
        assert fake_ha.states == {"input_text.note": "b"}
        response = await client.call_service("weather", "get_forecasts", return_response=True)
        assert response == fake_ha.responses["weather.get_forecasts"]
        with pytest.raises(APIError, match="status 400"):
            await client.call_service("light", "turn_on", return_response=True)
