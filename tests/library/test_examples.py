"""The forecast and the overview of tests/library/examples, over a broker."""

import json
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.brokers import Broker
from tests.library.examples.forecast import ForecastService, ForecastSettings
from tests.library.examples.overview import OverviewService, OverviewSettings
from tests.library.probes import LogProbe
from tests.observer import Observer
from tests.probes import until
from tests.running import running

type MakeSettings = Callable[..., Any]


@pytest.fixture
async def observer(broker: Broker, topic_prefix: str) -> AsyncIterator[Observer]:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        yield observer


class ForecastServer:
    """An HTTP server with a forecast, which a test may break."""

    def __init__(self) -> None:
        self.body: object = {"hourly_kwh": [0.0, 1.5, 3.0]}
        self.status, self.requests = 200, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests += 1
                content = json.dumps(server.body).encode()
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
async def forecast_server() -> AsyncIterator[ForecastServer]:
    forecast_server = ForecastServer()
    yield forecast_server
    forecast_server.server.shutdown()
    forecast_server.server.server_close()


@pytest.fixture
def forecast(make_settings: MakeSettings, forecast_server: ForecastServer) -> ForecastService:
    url = f"http://127.0.0.1:{forecast_server.server.server_port}"
    settings = make_settings(ForecastSettings, forecast_url=url, forecast_interval_seconds=0.02)
    return ForecastService(settings)


async def test_the_forecast_is_published_when_it_changes(
    forecast: ForecastService, forecast_server: ForecastServer, observer: Observer
) -> None:
    async with running(forecast):
        await observer.next("forecast/updated", today_kwh=4.5, best_hour=2)
        requests = forecast_server.requests
        await until(lambda: forecast_server.requests > requests + 2)
        forecast_server.body = {"hourly_kwh": [9.0, 1.5, 3.0]}
        await observer.next("forecast/updated", today_kwh=13.5, best_hour=0)
        observer.publish("coordinator/command/forecast", {"command": "refresh"})
        await observer.next("forecast/response", status="ok", today_kwh=13.5)
    assert observer.seen.count(f"{forecast.settings.topic_prefix}/forecast/updated") == 2


async def test_the_forecast_survives_a_broken_server(
    forecast: ForecastService, forecast_server: ForecastServer, observer: Observer, log: LogProbe
) -> None:
    forecast_server.status = 500
    async with running(forecast):
        failed = await log.next("cycle_failed", work="refresh")
        assert "status 500" in failed["error"]
        assert "exc_info" not in failed
        forecast_server.status = 200
        await observer.next("forecast/updated", today_kwh=4.5)
        await log.next("cycle_recovered")


async def test_the_overview_shows_all_other_services_and_reports_a_lost_one(
    make_settings: MakeSettings, forecast: ForecastService, observer: Observer, tmp_path: Path
) -> None:
    settings = make_settings(
        OverviewSettings, overview_interval_seconds=0.2, data_dir=tmp_path / "overview"
    )
    online: dict[str, Any] = {"status": "online", "reasons": []}
    offline = online | {"status": "offline"}
    async with running(OverviewService(settings)):
        async with running(forecast):
            await observer.next("overview/services", services={"forecast": online})
        attention = await observer.next("overview/attention")
        assert (attention["name"], attention["status"]) == ("forecast", "offline")
        observer.publish("coordinator/command/overview", {"command": "list"})
        await observer.next("overview/response", services={"forecast": offline})


async def test_the_overview_notices_a_service_that_has_fallen_silent(
    make_settings: MakeSettings, observer: Observer
) -> None:
    settings = make_settings(
        OverviewSettings, overview_interval_seconds=0.2, overview_max_age_seconds=0.5
    )
    heartbeat = {"status": "online", "uptime_seconds": 1, "memory_mb": 1}
    async with running(OverviewService(settings)):
        observer.publish("pump/availability", {"status": "online"})
        observer.publish("pump/heartbeat", heartbeat)
        services = {"pump": {"status": "silent", "reasons": []}}
        await observer.next("overview/services", services=services)
