"""HTTP requests, against responses made at the transport."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from structlog.stdlib import BoundLogger

from shared.api_client import APIClient, APIConnectionError, APIError

type MakeClient = Callable[..., APIClient]


@pytest.fixture
def requests() -> list[httpx.Request]:
    """The requests that were sent."""
    return []


@pytest.fixture
def make_client(logger: BoundLogger, requests: list[httpx.Request]) -> MakeClient:
    """Make a client of a server that gives these responses, the last one again and again."""

    def make(*responses: httpx.Response | Exception) -> APIClient:
        def respond(request: httpx.Request) -> httpx.Response:
            requests.append(request)
            response = responses[min(len(requests), len(responses)) - 1]
            if isinstance(response, Exception):
                raise response
            return response

        transport = httpx.MockTransport(respond)
        return APIClient("http://api.test", "s3cret", logger=logger, transport=transport)

    return make


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_seconds: float) -> None:
        pass

    monkeypatch.setattr(asyncio, "sleep", at_once)


async def test_sends_the_token_and_returns_json(
    make_client: MakeClient, requests: list[httpx.Request]
) -> None:
    async with make_client(httpx.Response(200, json={"value": 4.5})) as client:
        assert await client.get("/state", params={"room": "hall"}) == {"value": 4.5}
    (request,) = requests
    assert request.headers["Authorization"] == "Bearer s3cret"
    assert str(request.url) == "http://api.test/state?room=hall"


async def test_retries_a_get_after_a_timeout(
    make_client: MakeClient, requests: list[httpx.Request]
) -> None:
    timeout = httpx.ConnectTimeout("timeout")
    async with make_client(timeout, httpx.Response(200, json=1)) as client:
        assert await client.get("/state") == 1
    assert len(requests) == 2


async def test_never_repeats_a_post(make_client: MakeClient, requests: list[httpx.Request]) -> None:
    async with make_client(httpx.ConnectError("refused")) as client:
        with pytest.raises(APIConnectionError, match="refused"):
            await client.post("/run")
    assert len(requests) == 1


async def test_an_error_response_never_shows_the_token(make_client: MakeClient) -> None:
    async with make_client(httpx.Response(401, text="no\n way")) as client:
        with pytest.raises(
            APIError, match=r"GET http://api\.test/state: status 401: no way"
        ) as caught:
            await client.get("/state")
    assert "s3cret" not in f"{client!r} {caught.value!r}"
