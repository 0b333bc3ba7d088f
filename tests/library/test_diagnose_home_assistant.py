"""The diagnosis of Home Assistant."""

from collections.abc import Callable

import pytest

from tests.brokers import free_port
from tests.library.conftest import Run


def test_home_assistant_without_a_token_is_not_set_up(run: Run) -> None:
    code, results = run("--step", "home-assistant")
    assert (code, results["home-assistant"]["status"]) == (0, "SKIP")
    assert results["home-assistant"]["detail"].startswith("not set up: ")


def test_home_assistant_that_cannot_be_reached(run: Run) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, results = run("--step", "home-assistant", HA_URL=url, HA_TOKEN="t0ken")
    assert (code, results["home-assistant"]["status"]) == (1, "FAIL")
    assert "HA_URL" in results["home-assistant"]["fix"]
    assert "t0ken" not in str(results)


def test_a_ca_file_that_is_no_certificate(run: Run) -> None:
    _, results = run("--step", "home-assistant", HA_TOKEN="t0ken", HA_CA_FILE=__file__)
    assert results["home-assistant"]["status"] == "FAIL"
    assert "HA_CA_FILE" in results["home-assistant"]["detail"]
    assert "PEM" in results["home-assistant"]["fix"]


@pytest.mark.parametrize(("status", "outcome"), [(200, "PASS"), (401, "FAIL")])
def test_home_assistant_says_whether_the_token_is_good(
    run: Run, serve_http: Callable[[int, str], str], status: int, outcome: str
) -> None:
    url = serve_http(status, "{}")
    _, results = run("--step", "home-assistant", HA_URL=url, HA_TOKEN="t0ken")
    assert results["home-assistant"]["status"] == outcome
    assert outcome == "PASS" or "HA_TOKEN" in results["home-assistant"]["fix"]
