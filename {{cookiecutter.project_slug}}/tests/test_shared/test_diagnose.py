"""The diagnosis, with a broker, without one, and with steps that break."""

import asyncio
import json
import logging
{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}
import threading
{% endif %}
from collections.abc import Callable, Iterator
{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
{% endif %}
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared import diagnose
from shared.config import Settings
from shared.diagnose import Result, Step, failed, passed, warned
from tests.brokers import Broker, Mosquitto, free_port
from tests.conftest import MakeSettings
from tests.observer import Observer

type Run = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture(autouse=True)
def _no_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A diagnosis is a program of its own, in which nobody has set up logging."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    was_configured, configuration = structlog.is_configured(), structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if was_configured:
        structlog.configure(**configuration)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `python diagnose.py --json` with these variables; gives exit code and results."""

    def run(*arguments: str, steps: tuple[Step, ...] = (), **variables: str) -> Any:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code = diagnose.main(Settings, steps, ["--json", *arguments])
        results = json.loads(capsys.readouterr().out)
        return code, {result.pop("step"): result for result in results}

    return run


@pytest.fixture
def address(broker: Broker) -> dict[str, str]:
    return {"MQTT_HOST": broker.host, "MQTT_PORT": str(broker.port)}


@pytest.mark.integration
def test_all_is_well(run: Run, address: dict[str, str], tmp_path: Path) -> None:
    code, results = run(DATA_DIR=str(tmp_path / "data"), **address)
    assert code == 0
    assert [results[name]["status"] for name in ("config", "data", "mqtt")] == ["PASS"] * 3


def test_a_wrong_setting_stops_everything_and_shows_no_value(run: Run) -> None:
    code, results = run(MQTT_PORT="geheim")
    assert code == 1
    assert results["config"]["status"] == "FAIL"
    assert "MQTT_PORT" in results["config"]["detail"]
    assert {results[name]["status"] for name in results if name != "config"} == {"SKIP"}
    assert "geheim" not in str(results)


@pytest.mark.integration
def test_one_failure_leaves_the_other_steps_alone(
    run: Run, address: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("in the way")
    code, results = run(DATA_DIR=str(tmp_path / "data"), **address)
    assert (code, results["data"]["status"], results["mqtt"]["status"]) == (1, "FAIL", "PASS")
    assert results["data"]["fix"]


def test_without_a_broker_the_address_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "_MQTT_TIMEOUT_SECONDS", 0.3)
    port = str(free_port())
    code, results = run("--step", "mqtt", MQTT_HOST="127.0.0.1", MQTT_PORT=port)
    assert code == 1
    assert set(results) == {"config", "mqtt"}
    assert port in results["mqtt"]["detail"]
    assert "Connection refused" in results["mqtt"]["detail"]
    assert "MQTT_PORT" in results["mqtt"]["fix"]


@pytest.mark.integration
async def test_nothing_of_it_stays_at_the_broker(
    broker: Broker, make_settings: MakeSettings, topic_prefix: str
) -> None:
    assert (await diagnose.check_mqtt(make_settings())).status == "PASS"
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        observer.publish("marker", {})
        await observer.next("marker")
    # The embedded broker sends what it has retained for other topics as well.
    seen = [topic for topic in observer.seen if topic.startswith(f"{topic_prefix}/")]
    assert seen == [f"{topic_prefix}/marker"]


@pytest.mark.integration
def test_a_wrong_password_is_told_from_an_unreachable_broker(
    run: Run, make_mosquitto: Callable[..., Mosquitto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "_MQTT_TIMEOUT_SECONDS", 2.0)
    mosquitto = make_mosquitto(options="allow_anonymous false")
    mosquitto.start()
    code, results = run("--step", "mqtt", MQTT_HOST=mosquitto.host, MQTT_PORT=str(mosquitto.port))
    assert code == 1
    assert "refuses" in results["mqtt"]["detail"]
    assert "MQTT_PASSWORD" in results["mqtt"]["fix"]


def test_a_ca_file_that_is_no_certificate(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    _, results = run("--step", "mqtt", MQTT_TLS="true", MQTT_TLS_CA_FILE=str(path))
    assert results["mqtt"]["status"] == "FAIL"
    assert "MQTT_TLS_CA_FILE" in results["mqtt"]["detail"]
    assert "PEM" in results["mqtt"]["fix"]


@pytest.mark.integration
def test_a_topic_that_may_not_be_used(
    run: Run,
    make_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diagnose, "_MQTT_TIMEOUT_SECONDS", 1.0)
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    acl.chmod(0o644)
    mosquitto = make_mosquitto(options=f"acl_file {acl}")
    mosquitto.start()
    _, results = run("--step", "mqtt", MQTT_HOST=mosquitto.host, MQTT_PORT=str(mosquitto.port))
    assert results["mqtt"]["status"] == "FAIL"
    assert "did not come back" in results["mqtt"]["detail"]
    assert "ACL" in results["mqtt"]["fix"]


def test_steps_of_a_service(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "_STEP_TIMEOUT_SECONDS", 0.05)

    async def breaks(_settings: Settings) -> Result:
        raise LookupError("bug")

    async def hangs(_settings: Settings) -> Result:
        await asyncio.Event().wait()
        return passed("never")

    async def warns(_settings: Settings) -> Result:
        return warned("half", "do it whole")

    steps = (Step("breaks", breaks), Step("hangs", hangs), Step("warns", warns))
    code, results = run("--step", "breaks", "--step", "hangs", "--step", "warns", steps=steps)
    assert code == 1
    assert "LookupError: bug" in results["breaks"]["detail"]
    assert "no result in 0.05 s" in results["hangs"]["detail"]
    assert results["warns"] == {"status": "WARN", "detail": "half", "fix": "do it whole"}
    code, _ = run("--step", "warns", steps=steps)
    assert code == 0


def test_people_read_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails(_settings: Settings) -> Result:
        return failed("broken", "mend it")

    steps = (Step("device", fails),)
    assert diagnose.main(Settings, steps, ["--step", "device"]) == 1
    plain = capsys.readouterr().out
    assert plain.splitlines() == [
        "PASS  config  all settings are valid",
        "FAIL  device  broken",
        "              -> mend it",
    ]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    diagnose.main(Settings, steps, ["--step", "device"])
    assert "\033[31mFAIL\033[0m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    diagnose.main(Settings, steps, ["--step", "device"])
    assert capsys.readouterr().out == plain


def test_all_is_every_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, some = run("--step", "all", MQTT_PORT="x")
    _, every = run(MQTT_PORT="x")
    assert some == every


def test_a_password_in_an_address_is_not_shown(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    async def look(_settings: Settings) -> diagnose.Result:
        return diagnose.failed("http://user:hunter2@meter is away", "see http://user:hunter2@meter")

    _, results = run(steps=[diagnose.Step("meter", look)])
    assert "meter is away" in results["meter"]["detail"]
    assert "hunter2" not in str(results)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        diagnose.main(Settings, (), ["--step", "nonsense"])
{% if cookiecutter.include_home_assistant %}


def test_home_assistant_without_a_token_is_a_warning(run: Run) -> None:
    code, results = run("--step", "home-assistant")
    assert (code, results["home-assistant"]["status"]) == (0, "WARN")


def test_home_assistant_that_cannot_be_reached(run: Run) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, results = run("--step", "home-assistant", HA_URL=url, HA_TOKEN="t0ken")
    assert (code, results["home-assistant"]["status"]) == (1, "FAIL")
    assert "HA_URL" in results["home-assistant"]["fix"]
    assert "t0ken" not in str(results)


@pytest.mark.parametrize(("status", "outcome"), [(200, "PASS"), (401, "FAIL")])
def test_home_assistant_says_whether_the_token_is_good(
    run: Run, serve_http: Callable[[int, str], str], status: int, outcome: str
) -> None:
    url = serve_http(status, "{}")
    _, results = run("--step", "home-assistant", HA_URL=url, HA_TOKEN="t0ken")
    assert results["home-assistant"]["status"] == outcome
    assert outcome == "PASS" or "HA_TOKEN" in results["home-assistant"]["fix"]
{% endif %}
{% if cookiecutter.include_influxdb %}


def test_influxdb_without_a_token_is_a_warning(run: Run) -> None:
    code, results = run("--step", "influxdb")
    assert (code, results["influxdb"]["status"]) == (0, "WARN")


def test_influxdb_that_cannot_be_reached(run: Run) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, results = run("--step", "influxdb", INFLUX_URL=url, INFLUX_TOKEN="t0ken")
    assert (code, results["influxdb"]["status"]) == (1, "FAIL")
    assert "INFLUX_URL" in results["influxdb"]["fix"]


@pytest.mark.parametrize(("status", "outcome"), [(200, "PASS"), (401, "FAIL")])
def test_influxdb_says_whether_the_token_is_good(
    run: Run, serve_http: Callable[[int, str], str], status: int, outcome: str
) -> None:
    url = serve_http(status, "")
    _, results = run("--step", "influxdb", INFLUX_URL=url, INFLUX_TOKEN="t0ken")
    assert results["influxdb"]["status"] == outcome
    assert outcome == "PASS" or "INFLUX_TOKEN" in results["influxdb"]["fix"]
{% endif %}
{% if cookiecutter.include_home_assistant or cookiecutter.include_influxdb %}


@pytest.fixture
def serve_http() -> Iterator[Callable[[int, str], str]]:
    """Starts a server that answers everything alike, but always welcomes `/ping`."""
    servers: list[ThreadingHTTPServer] = []

    def serve(status: int, body: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                is_ping = self.path == "/ping"
                self.send_response(204 if is_ping else status)
                self.send_header("Content-Length", str(0 if is_ping else len(body)))
                self.end_headers()
                if not is_ping:
                    self.wfile.write(body.encode())

            do_GET = do_POST = answer  # noqa: N815 - the names are the library's

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
{% endif %}
