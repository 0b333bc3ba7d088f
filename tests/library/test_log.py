import json
import logging
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any, Literal

import pytest

from shared.log import get_logger
from shared.tracing import bind_trace_id

type ReadLines = Callable[[], list[dict[str, Any]]]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Leave the root logger as it was, for the other tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> ReadLines:
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_without_a_terminal(lines: ReadLines) -> None:
    get_logger("a-service").info("reading_done", value=1.5)
    [line] = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "reading_done", "level": "info", "service": "a-service", "value": 1.5}


def test_console_on_a_terminal_with_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    get_logger("a-service").info("reading_done")
    assert "reading_done" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_no_colours_when_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    get_logger("a-service").info("reading_done")
    assert "\x1b[" not in terminal.getvalue()


def test_either_format_can_be_forced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    get_logger("a-service", log_format="console").info("reading_done")
    plain = capsys.readouterr().out
    assert "[info" in plain
    assert "\x1b[" not in plain
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    get_logger("a-service", log_format="json").info("reading_done")
    assert json.loads(terminal.getvalue())["event"] == "reading_done"


def test_the_level_is_honoured_by_us_and_by_libraries(lines: ReadLines) -> None:
    logger = get_logger("a-service", level="WARNING")
    logger.info("not_shown")
    logging.getLogger("a.library").info("not shown")
    logger.warning("shown")
    logging.getLogger("a.library").warning("shown by %s", "a library")
    assert [line["event"] for line in lines()] == ["shown", "shown by a library"]


def test_lines_of_libraries_look_like_ours(lines: ReadLines) -> None:
    get_logger("a-service")
    with bind_trace_id("0af7"):
        logging.getLogger("paho").error("failed to %s", "receive")
    [line] = lines()
    assert line.pop("timestamp")
    assert line == {
        "event": "failed to receive",
        "level": "error",
        "service": "a-service",
        "trace_id": "0af7",
    }


def test_requests_of_httpx_are_shown_when_debugging_only(lines: ReadLines) -> None:
    get_logger("a-service")
    logging.getLogger("httpx").info("HTTP Request: GET /")
    assert lines() == []
    get_logger("a-service", level="DEBUG")
    logging.getLogger("httpx").info("HTTP Request: GET /")
    assert len(lines()) == 1


def test_the_trace_id_is_on_our_lines_and_can_be_overridden(lines: ReadLines) -> None:
    logger = get_logger("a-service")
    with bind_trace_id("0af7"):
        logger.info("first")
        logger.info("second", trace_id="other")
    logger.info("third")
    assert [line.get("trace_id") for line in lines()] == ["0af7", "other", None]


def test_setting_up_twice_does_not_double_the_lines(lines: ReadLines) -> None:
    get_logger("a-service")
    get_logger("b-service").info("reading_done")
    assert [line["service"] for line in lines()] == ["b-service"]


def test_an_exception_is_a_structured_traceback_without_local_variables(lines: ReadLines) -> None:
    logger = get_logger("a-service")
    # By its name alone it is no secret.
    entered = "hunter2"
    try:
        int(f"x{len(entered)}")
    except ValueError:
        logger.exception("cycle_failed")
    [line] = lines()
    [exception] = line["exception"]
    assert exception["exc_type"] == "ValueError"
    assert exception["frames"][-1]["filename"] == __file__
    assert "hunter2" not in json.dumps(line)


def test_an_exception_on_the_console_is_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logger = get_logger("a-service", log_format="console")
    try:
        raise LookupError("mqtt://user:hunter2@broker")
    except LookupError:
        logger.exception("cycle_failed")
    out = capsys.readouterr().out
    assert "Traceback (most recent call last)" in out
    assert "hunter2" not in out


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_do_not_reach_the_log(
    capsys: pytest.CaptureFixture[str], log_format: Literal["json", "console"]
) -> None:
    logger = get_logger("a-service", log_format=log_format)
    logger.info("request", headers={"Authorization": "Bearer hunter2hunter2"}, api_token="hunter2")
    logging.getLogger("httpcore").warning("GET %s", "http://user:hunter2@host/?token=hunter2")
    out = capsys.readouterr().out
    assert out.count("[redacted]") == 4
    assert "hunter2" not in out
