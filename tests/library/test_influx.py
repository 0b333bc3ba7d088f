"""The official client library against a real HTTP server that answers as InfluxDB does."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr
from structlog.stdlib import BoundLogger

from shared.config import ConfigurationError, Settings, load_settings
from shared.influx import InfluxClient, InfluxError
from tests.conftest import MakeSettings
from tests.fakes import FakeInflux
from tests.library.conftest import ServeHTTP

CSV = (
    "#datatype,string,long,string,double\r\n"
    "#group,false,false,true,false\r\n"
    "#default,_result,,,\r\n"
    ",result,table,room,_value\r\n"
    ",,0,kitchen,21.5\r\n"
    ",,0,kitchen,22\r\n"
    "\r\n"
)


@pytest.fixture
async def server() -> AsyncIterator[SimpleNamespace]:
    """Record requests as (method, path, body). With `status` 0 none gets a response."""
    state = SimpleNamespace(requests=[], status=200, body=CSV, released=asyncio.Event())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        headers = dict(line.split(": ", 1) for line in head.lower().split("\r\n")[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        state.requests.append((method, path, body.decode()))
        state.headers = headers
        if not state.status:
            await state.released.wait()
        else:
            content = state.body.encode()
            writer.write(
                f"HTTP/1.1 {state.status} X\r\nContent-Type: text/csv\r\nConnection: close\r\n"
                f"X-Influxdb-Version: v2.7.0\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                + content
            )
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield state
    state.released.set()
    listener.close()
    await listener.wait_closed()


@pytest.fixture
async def client(server: SimpleNamespace, logger: BoundLogger) -> AsyncIterator[InfluxClient]:
    async with InfluxClient(
        server.url,
        SecretStr("t0ken"),
        org="home",
        bucket="energy",
        timeout_seconds=5,
        logger=logger,
    ) as client:
        yield client


async def test_takes_its_settings(make_settings: MakeSettings, logger: BoundLogger) -> None:
    settings = make_settings(
        Settings, influx_url="http://influx.test", influx_org="o", influx_bucket="b"
    )
    client = InfluxClient.from_settings(settings, logger)
    assert (client.url, client.org, client.bucket) == ("http://influx.test", "o", "b")
    await client.aclose()


async def test_values_travel_as_parameters(server: SimpleNamespace, client: InfluxClient) -> None:
    hostile = 'kitchen") |> drop(columns: ["_value"]) //'
    rows = await client.query(
        "from(bucket: bucket) |> range(start: start) |> filter(fn: (r) => r.room == room)",
        {"bucket": "energy", "start": timedelta(hours=-1), "room": hostile},
    )
    assert [(row["room"], row["_value"]) for row in rows] == [("kitchen", 21.5), ("kitchen", 22)]
    ((method, path, body),) = server.requests
    assert (method, path) == ("POST", "/api/v2/query?org=home")
    assert server.headers["authorization"] == "token t0ken"
    sent = json.loads(body)
    assert hostile not in sent["query"]
    assert hostile in json.dumps(sent["extern"]).encode().decode("unicode_escape")


async def test_a_parameter_without_a_value_is_named(client: InfluxClient) -> None:
    with pytest.raises(InfluxError, match="no value for room"):
        await client.query("x", {"room": None})  # type: ignore[dict-item]


async def test_writes_points(server: SimpleNamespace, client: InfluxClient) -> None:
    server.status, server.body = 204, ""
    time = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    await client.write("power", {"watts": 4.5}, tags={"room": "a b"}, time=time)
    ((method, path, body),) = server.requests
    assert (method, path.split("?")[0]) == ("POST", "/api/v2/write")
    assert "bucket=energy" in path
    assert body == r"power,room=a\ b watts=4.5 1000000000"
    await client.write("power", {"on": True})
    assert server.requests[1][2] == "power on=true"


async def test_numbers_are_floats_unless_asked_otherwise(
    server: SimpleNamespace, client: InfluxClient
) -> None:
    server.status, server.body = 204, ""
    await client.write("power", {"watts": 20, "on": True, "mode": "20"})
    await client.write("power", {"count": 20, "share": 0.5}, keep_integers=True)
    bodies = [body for _, _, body in server.requests]
    assert bodies == ['power mode="20",on=true,watts=20', "power count=20i,share=0.5"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, 10**400])
async def test_a_point_without_a_value_is_not_written(
    server: SimpleNamespace, client: InfluxClient, value: float
) -> None:
    with pytest.raises(InfluxError, match="no value for watts"):
        await client.write("power", {"watts": value, "on": True})
    assert server.requests == []


async def test_a_point_that_the_server_has_not_taken(
    server: SimpleNamespace, client: InfluxClient
) -> None:
    server.status, server.body = 200, "<p>Please log in</p>"
    with pytest.raises(InfluxError, match="did not confirm the point"):
        await client.write("power", {"watts": 4.5})


async def test_pings(server: SimpleNamespace, client: InfluxClient) -> None:
    await client.ping()
    assert server.requests[0][1] == "/ping"


async def test_an_error_of_the_server_is_ours(
    server: SimpleNamespace, client: InfluxClient
) -> None:
    server.status, server.body = 401, '{"code": "unauthorized", "message": "no such token"}'
    with pytest.raises(InfluxError, match="no such token"):
        await client.query("x")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("#datatype,string,string\r\n,error,reference\r\n,out of memory,897\r\n", "out of memory"),
        (CSV.replace("21.5", "warm"), "ValueError"),
        ("<p>Please log in</p>\r\n", "IndexError"),
        ("a,b,c\r\n", "FluxCsvParserException"),
    ],
    ids=["error in the middle", "no number", "no table", "no annotations"],
)
async def test_an_answer_that_cannot_be_read_is_ours(
    server: SimpleNamespace, client: InfluxClient, body: str, said: str
) -> None:
    server.body = body
    with pytest.raises(InfluxError, match=said):
        await client.query("x")


async def test_an_address_that_is_none_is_ours(logger: BoundLogger) -> None:
    token = SecretStr("")
    async with InfluxClient("http://[", token, org="o", bucket="b", logger=logger) as client:
        with pytest.raises(InfluxError, match=r"http://\["):
            await client.ping()


async def test_a_server_that_is_away(logger: BoundLogger) -> None:
    async with InfluxClient(
        "http://127.0.0.1:1", SecretStr(""), org="o", bucket="b", logger=logger
    ) as client:
        with pytest.raises(InfluxError, match=r"127\.0\.0\.1:1"):
            await client.query("x")
        with pytest.raises(InfluxError):
            await client.ping()


async def test_a_server_that_does_not_answer_in_time(
    server: SimpleNamespace, logger: BoundLogger
) -> None:
    server.status = 0
    async with InfluxClient(
        server.url, SecretStr(""), org="o", bucket="b", timeout_seconds=0.1, logger=logger
    ) as client:
        with pytest.raises(InfluxError, match="Timeout"):
            await client.query("x")


async def test_connects_again_after_closing(server: SimpleNamespace, client: InfluxClient) -> None:
    await client.ping()
    await client.aclose()
    await client.aclose()
    await client.ping()
    assert len(server.requests) == 2


@pytest.mark.parametrize("address", ["meter:8123", "ftp://meter", "http://", "http://meter:port"])
def test_an_address_that_is_not_valid_is_a_problem_at_the_start(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("INFLUX_URL", address)
    with pytest.raises(ConfigurationError, match="INFLUX_URL"):
        load_settings(Settings)


async def test_a_server_with_a_certificate_authority_of_its_own(
    serve_http: ServeHTTP,
    server_tls: ssl.SSLContext,
    certificates: Path,
    make_settings: MakeSettings,
    logger: BoundLogger,
) -> None:
    url = serve_http(200, CSV, server_tls)
    settings = make_settings(Settings, influx_url=url, influx_ca_file=certificates / "ca.crt")
    async with InfluxClient.from_settings(settings, logger) as client:
        await client.ping()
        assert len(await client.query("x")) == 2
    other = settings.model_copy(update={"influx_ca_file": None})
    async with InfluxClient.from_settings(other, logger) as client:
        with pytest.raises(InfluxError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.ping()


async def test_the_database_in_memory(
    fake_influx: FakeInflux, make_settings: MakeSettings, logger: BoundLogger
) -> None:
    """The client is the real one, and checks what a service writes."""
    fake_influx.rows = [{"room": "kitchen", "_value": 21.5}]
    async with InfluxClient.from_settings(make_settings(), logger) as client:
        await client.ping()
        await client.write("climate", {"celsius": 21}, tags={"room": "kitchen"})
        with pytest.raises(InfluxError):
            await client.write("climate", {"celsius": float("nan")})
        assert await client.query("from(bucket: b)", {"b": "home"}) == fake_influx.rows
    (point,) = fake_influx.points
    assert point == {
        "measurement": "climate",
        "fields": {"celsius": 21.0},
        "tags": {"room": "kitchen"},
    }
    assert fake_influx.queries == [("from(bucket: b)", {"b": "home"})]
