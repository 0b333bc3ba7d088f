"""The way of every HTTP request, against answers made at the transport."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from structlog.stdlib import BoundLogger

from shared.api_client import (
    APIClient,
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    NotFoundError,
)

type Answer = httpx.Response | Exception
type MakeClient = Callable[..., APIClient]


class Server:
    """Answers each request with the next of `answers`, the last one for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = list(answers)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def make_client(logger: BoundLogger) -> AsyncIterator[MakeClient]:
    clients: list[APIClient] = []

    def make(server: Server, **options: Any) -> APIClient:
        transport = httpx.MockTransport(server)
        clients.append(
            APIClient("http://api.test/", "s3cret", logger=logger, transport=transport, **options)
        )
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    remembered = []

    async def remember(seconds: float) -> None:
        remembered.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", remember)
    return remembered


async def test_sends_the_token_and_returns_json(make_client: MakeClient) -> None:
    server = Server(httpx.Response(200, json={"value": 4.5}))
    client = make_client(server)
    assert await client.get("/state", params={"room": "Küche & Bad"}) == {"value": 4.5}
    (request,) = server.requests
    assert request.headers["Authorization"] == "Bearer s3cret"
    assert request.url.params["room"] == "Küche & Bad"
    assert str(request.url).startswith("http://api.test/state?")


async def test_posts_json_and_takes_an_empty_answer(make_client: MakeClient) -> None:
    server = Server(httpx.Response(204))
    assert await make_client(server).post("/run", {"a": 1}) is None
    assert server.requests[0].content == b'{"a":1}'


async def test_the_token_is_in_no_text(make_client: MakeClient) -> None:
    client = make_client(Server(httpx.ConnectError("refused")), max_retries=0)
    with pytest.raises(APIError) as caught:
        await client.get("/state")
    assert "s3cret" not in f"{client!r} {vars(client)} {caught.value!r}"


async def test_a_token_that_the_library_quotes_is_hidden(make_client: MakeClient) -> None:
    quoted = httpx.LocalProtocolError("Illegal header value b'Bearer s3cret-token '")
    server = Server(quoted)
    with pytest.raises(APIError, match="Illegal header value") as caught:
        await make_client(server).get("/state")
    assert "s3cret" not in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "token"), [("http://api.test:port", "s3cret"), ("http://api.test", "s3cret-schlüssel")]
)
async def test_what_cannot_be_sent_is_one_of_our_errors(
    logger: BoundLogger, url: str, token: str
) -> None:
    with pytest.raises(APIError, match="cannot be sent") as caught:
        await APIClient(url, token, logger=logger).get("/state")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AuthenticationError), (403, AuthenticationError), (404, NotFoundError)],
)
async def test_refusals_are_final(
    make_client: MakeClient, waits: list[float], status: int, error: type[APIStatusError]
) -> None:
    server = Server(httpx.Response(status, text="no\n way"))
    with pytest.raises(
        error, match=rf"GET http://api\.test/state: status {status}: no way"
    ) as caught:
        await make_client(server).get("/state")
    assert caught.value.status == status
    assert (len(server.requests), waits) == (1, [])


async def test_repeats_a_get_after_failed_connections(
    make_client: MakeClient, waits: list[float]
) -> None:
    server = Server(
        httpx.ConnectError("refused"), httpx.ConnectTimeout("late"), httpx.Response(200, json=1)
    )
    assert await make_client(server).get("/state") == 1
    assert (len(server.requests), len(waits)) == (3, 2)


async def test_gives_up_with_the_last_error(make_client: MakeClient, waits: list[float]) -> None:
    server = Server(httpx.ConnectError("refused"))
    with pytest.raises(APIConnectionError, match="refused"):
        await make_client(server, max_retries=2).get("/state")
    assert (len(server.requests), len(waits)) == (3, 2)


@pytest.mark.parametrize(
    "answer", [httpx.ConnectError("refused"), httpx.Response(503, headers={"Retry-After": "1"})]
)
async def test_never_repeats_a_post(
    make_client: MakeClient, waits: list[float], answer: Answer
) -> None:
    server = Server(answer)
    with pytest.raises(APIError):
        await make_client(server).post("/run")
    assert (len(server.requests), waits) == (1, [])


async def test_never_repeats_after_a_read_timeout(
    make_client: MakeClient, waits: list[float]
) -> None:
    server = Server(httpx.ReadTimeout("late"))
    with pytest.raises(APITimeoutError):
        await make_client(server).get("/state")
    assert (len(server.requests), waits) == (1, [])


@pytest.mark.parametrize("status", [429, 503])
async def test_waits_as_long_as_the_server_asks(
    make_client: MakeClient, waits: list[float], status: int
) -> None:
    busy = httpx.Response(status, headers={"Retry-After": "7"})
    assert await make_client(Server(busy, httpx.Response(200, json=1))).get("/state") == 1
    assert waits == [7.0]


async def test_retry_after_may_be_a_date(make_client: MakeClient, waits: list[float]) -> None:
    began = datetime.now(UTC)
    when = began.replace(microsecond=0) + timedelta(seconds=20)
    busy = httpx.Response(503, headers={"Retry-After": format_datetime(when, usegmt=True)})
    await make_client(Server(busy, httpx.Response(200, json=1))).get("/state")
    ended = datetime.now(UTC)
    assert (when - ended).total_seconds() <= waits[0] <= (when - began).total_seconds()


@pytest.mark.parametrize(("value", "wait"), [("86400", 60.0), ("0", 0.0)])
async def test_retry_after_is_capped(
    make_client: MakeClient, waits: list[float], value: str, wait: float
) -> None:
    busy = httpx.Response(503, headers={"Retry-After": value})
    client = make_client(Server(busy, httpx.Response(200, json=1)), timeout_seconds=100)
    await client.get("/state")
    assert waits == [wait]


async def test_a_wait_beyond_the_time_limit_ends_with_what_the_server_said(
    make_client: MakeClient, waits: list[float]
) -> None:
    server = Server(httpx.Response(503, headers={"Retry-After": "7"}))
    with pytest.raises(APIStatusError, match="status 503") as caught:
        await make_client(server, timeout_seconds=5).get("/state")
    assert caught.value.retry_after_seconds == 7
    assert (len(server.requests), waits) == (1, [])


@pytest.mark.parametrize("headers", [{"Retry-After": "soon"}, {"Retry-After": ""}, {}])
async def test_a_server_that_does_not_ask_for_it_is_not_asked_again(
    make_client: MakeClient, waits: list[float], headers: dict[str, str]
) -> None:
    server = Server(httpx.Response(503, headers=headers))
    with pytest.raises(APIStatusError, match="status 503"):
        await make_client(server).get("/state")
    assert (len(server.requests), waits) == (1, [])


async def test_other_errors_of_the_server_are_not_repeated(
    make_client: MakeClient, waits: list[float]
) -> None:
    with pytest.raises(APIStatusError, match="status 500"):
        await make_client(Server(httpx.Response(500))).get("/state")
    assert waits == []


async def test_the_time_limit_is_for_everything_together(make_client: MakeClient) -> None:
    client = make_client(Server(httpx.ConnectError("refused")), timeout_seconds=0.05)
    with pytest.raises(APITimeoutError, match=r"no response in 0\.05 s"):
        await client.get("/state")


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<p>"), httpx.TooManyRedirects("r")])
async def test_an_answer_of_another_kind(make_client: MakeClient, answer: Answer) -> None:
    with pytest.raises(APIResponseError):
        await make_client(Server(answer)).get("/state")


async def test_connects_again_after_closing(make_client: MakeClient) -> None:
    client = make_client(Server(httpx.Response(200, json=1)))
    async with client:
        assert await client.get("/state") == 1
    await client.aclose()
    assert await client.get("/state") == 1


@pytest.mark.parametrize(
    "content", [{"value": float("nan")}, {"at": datetime(2026, 1, 1, tzinfo=UTC)}, {"a": "\ud800"}]
)
async def test_content_that_is_not_json_is_one_of_our_errors(
    make_client: MakeClient, content: dict[str, object]
) -> None:
    server = Server(httpx.Response(200))
    with pytest.raises(APIError, match=r"POST http://api\.test/run: cannot be sent as JSON"):
        await make_client(server).post("/run", content)
    assert server.requests == []


async def test_an_error_names_the_host_without_its_password(logger: BoundLogger) -> None:
    url = "http://user:hunter2@api.test:81/v1"  # pragma: allowlist secret
    transport = httpx.MockTransport(Server(httpx.ConnectError("refused")))
    client = APIClient(url, max_retries=0, logger=logger, transport=transport)
    with pytest.raises(
        APIConnectionError, match=r"^GET http://\[redacted\]@api\.test:81/v1/x: ref"
    ):
        await client.get("x")


async def test_a_redirect_names_its_target(make_client: MakeClient) -> None:
    moved = httpx.Response(301, headers={"Location": "https://api.test/state"})
    with pytest.raises(APIStatusError, match=r"status 301: redirect to https://api\.test/state"):
        await make_client(Server(moved)).get("/state")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("HTTPS_PROXY", "socks4://127.0.0.1:1"),
        ("HTTP_PROXY", "http://127.0.0.1:port"),
        ("NO_PROXY", "localhost,[::1]"),
        ("no_proxy", "fd00::/8"),
        ("SSL_CERT_FILE", "/missing.pem"),
        ("SSL_CERT_FILE", __file__),
    ],
)
async def test_a_variable_that_cannot_be_used_is_named(
    logger: BoundLogger, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for other in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
        monkeypatch.delenv(other.lower(), raising=False)
    monkeypatch.setenv(name, value)
    client = APIClient("http://api.test", logger=logger)
    with pytest.raises(APIError, match=name) as caught:
        await client.get("/state")
    assert type(caught.value) is APIError
    assert value in str(caught.value)
