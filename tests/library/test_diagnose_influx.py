"""The diagnosis of InfluxDB."""

from collections.abc import Callable

import pytest

from tests.brokers import free_port
from tests.library.conftest import Run


def test_influxdb_without_a_token_is_not_set_up(run: Run) -> None:
    code, results = run("--step", "influxdb")
    assert (code, results["influxdb"]["status"]) == (0, "SKIP")
    assert results["influxdb"]["detail"].startswith("not set up: ")


def test_a_machine_that_does_not_reach_the_container_leaves_it_out(run: Run) -> None:
    """A port that nothing listens on, since a name server could know the name."""
    url = f"http://influxdb:{free_port()}"
    code, results = run("--step", "influxdb", INFLUX_URL=url, INFLUX_TOKEN="t0ken")
    assert (code, results["influxdb"]["status"]) == (0, "SKIP")
    assert "without HOST=1" in results["influxdb"]["fix"]


def test_influxdb_that_cannot_be_reached(run: Run) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, results = run("--step", "influxdb", INFLUX_URL=url, INFLUX_TOKEN="t0ken")
    assert (code, results["influxdb"]["status"]) == (1, "FAIL")
    assert "INFLUX_URL" in results["influxdb"]["fix"]


def test_a_ca_file_that_is_no_certificate(run: Run) -> None:
    _, results = run("--step", "influxdb", INFLUX_TOKEN="t0ken", INFLUX_CA_FILE=__file__)
    assert results["influxdb"]["status"] == "FAIL"
    assert "INFLUX_CA_FILE" in results["influxdb"]["detail"]
    assert "PEM" in results["influxdb"]["fix"]


@pytest.mark.parametrize(("status", "outcome"), [(200, "PASS"), (401, "FAIL")])
def test_influxdb_says_whether_the_token_is_good(
    run: Run, serve_http: Callable[[int, str], str], status: int, outcome: str
) -> None:
    url = serve_http(status, "")
    _, results = run("--step", "influxdb", INFLUX_URL=url, INFLUX_TOKEN="t0ken")
    assert results["influxdb"]["status"] == outcome
    assert outcome == "PASS" or "INFLUX_TOKEN" in results["influxdb"]["fix"]
