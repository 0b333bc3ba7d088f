"""The diagnosis, with a broker, without one, and with steps that break."""

import asyncio
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared import diagnose
from shared.config import Settings
from shared.diagnose import Result, Step, failed, passed, warned
from tests.brokers import Broker, free_port
from tests.conftest import ROOT, MakeSettings
from tests.library.conftest import Mosquitto, Run
from tests.observer import Observer

pytestmark = pytest.mark.usefixtures("no_logging")


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
    monkeypatch.setattr(diagnose, "_MQTT_TIMEOUT_SECONDS", 2.0)
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
    assert observer.seen == [f"{topic_prefix}/marker"]


@pytest.mark.integration
def test_a_wrong_password_is_told_from_an_unreachable_broker(
    run: Run, make_mosquitto: Callable[..., Mosquitto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "_MQTT_TIMEOUT_SECONDS", 2.0)
    mosquitto = make_mosquitto(options="allow_anonymous false")
    mosquitto.start()
    code, results = run("--step", "mqtt", MQTT_HOST=mosquitto.host, MQTT_PORT=str(mosquitto.port))
    assert code == 1
    assert "rejects the connection" in results["mqtt"]["detail"]
    assert "MQTT_PASSWORD" in results["mqtt"]["fix"]


@pytest.mark.parametrize("is_mute", [False, True])
async def test_a_server_that_is_not_a_broker_is_named(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, is_mute: bool
) -> None:
    monkeypatch.setattr(diagnose, "_MQTT_TIMEOUT_SECONDS", 3.0)
    monkeypatch.setattr(diagnose, "_MQTT_KEEPALIVE_SECONDS", 1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if is_mute:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    result = await diagnose.check_mqtt(make_settings(mqtt_port=port))
    server.close()
    assert result.status == "FAIL"
    assert "sends no CONNACK" in result.detail
    assert "MQTT_TLS" in result.fix
    assert "web server" in result.fix


def test_a_ca_file_that_is_no_certificate(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    _, results = run("--step", "mqtt", MQTT_TLS="true", MQTT_TLS_CA_FILE=str(path))
    assert results["mqtt"]["status"] == "FAIL"
    assert "MQTT_TLS_CA_FILE" in results["mqtt"]["detail"]
    assert "PEM" in results["mqtt"]["fix"]


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_a_ca_without_key_usage_and_the_commands_that_fix_it(
    run: Run,
    make_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diagnose, "_MQTT_TIMEOUT_SECONDS", 2.0)
    create_context = ssl.create_default_context

    def create_strict_context(**options: Any) -> ssl.SSLContext:
        """Create the context of Python 3.13 in every version."""
        context = create_context(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", create_strict_context)
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(
        "[req]\ndistinguished_name = name\nx509_extensions = ca\n[name]\n[ca]\n"
        "basicConstraints = critical,CA:TRUE\n"
    )

    def shell(script: str) -> None:
        subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True, capture_output=True)  # noqa: S603, S607

    def diagnosis() -> dict[str, str]:
        mosquitto = make_mosquitto(
            options=f"certfile {tmp_path}/mqtt.crt\nkeyfile {tmp_path}/mqtt.key\n"
        )
        mosquitto.start()
        _, results = run(
            "--step",
            "mqtt",
            MQTT_HOST="localhost",
            MQTT_PORT=str(mosquitto.port),
            MQTT_TLS="true",
            MQTT_TLS_CA_FILE=f"{tmp_path}/ca.crt",
        )
        return results["mqtt"]

    page = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
    begin = page.index("openssl req -x509")
    script = page[begin : page.index("```", begin)].replace("broker.example.org", "localhost")
    shell(script.replace("-addext keyUsage=critical,keyCertSign,cRLSign", "-config openssl.cnf"))
    rejected = diagnosis()
    assert rejected["status"] == "FAIL"
    assert "key usage extension" in rejected["detail"]
    assert "docs/containers.md" in rejected["fix"]
    shell(script)
    assert diagnosis()["status"] == "PASS"


@pytest.mark.integration
def test_a_topic_that_may_not_be_used(
    run: Run,
    make_mosquitto: Callable[..., Mosquitto],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diagnose, "_MQTT_TIMEOUT_SECONDS", 3.0)
    acl = tmp_path / "acl"
    acl.write_text("topic read #\n")
    acl.chmod(0o644)
    mosquitto = make_mosquitto(options=f"acl_file {acl}")
    mosquitto.start()
    _, results = run("--step", "mqtt", MQTT_HOST=mosquitto.host, MQTT_PORT=str(mosquitto.port))
    assert results["mqtt"]["status"] == "FAIL"
    assert "was not received" in results["mqtt"]["detail"]
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


def test_a_terminal_wraps_texts_and_leaves_commands_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = f"run these:\nopenssl {'x' * 60}"

    async def fails(_settings: Settings) -> Result:
        return failed("word " * 20, "word " * 20)

    async def explains(_settings: Settings) -> Result:
        return failed("broken", commands)

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "50")
    steps = (Step("device", fails), Step("tls", explains))
    diagnose.main(Settings, steps, ["--step", "device", "--step", "tls"])
    shown = capsys.readouterr().out
    assert commands in shown
    lines = shown.replace(commands, "").splitlines()
    assert max(map(len, lines)) <= 50
    assert f"{'':14}{'word ' * 7}".rstrip() in lines
    assert f"{'':17}{'word ' * 6}".rstrip() in lines


def test_all_is_every_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _, some = run("--step", "all", MQTT_PORT="x")
    _, every = run(MQTT_PORT="x")
    assert some == every


def test_a_password_in_an_address_is_not_shown(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    async def look(_settings: Settings) -> diagnose.Result:
        return diagnose.failed("http://user:hunter2@meter is away", "see http://user:hunter2@meter")

    _, results = run("--step", "meter", steps=[diagnose.Step("meter", look)])
    assert "meter is away" in results["meter"]["detail"]
    assert "hunter2" not in str(results)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        diagnose.main(Settings, (), ["--step", "nonsense"])
