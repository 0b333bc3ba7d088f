"""The session of one instance, from one start to the next."""

import os
from pathlib import Path

import pytest
from structlog.stdlib import BoundLogger
from structlog.testing import capture_logs

from shared.mqtt.session import Session


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "session.json"


def test_the_next_start_goes_on_with_it(path: Path, logger: BoundLogger) -> None:
    first = Session.claim(path, "heater", logger)
    first.filters |= {"a", "b"}
    first.save()
    first.close()
    second = Session.claim(path, "heater", logger)
    assert second.persistent
    assert (second.client_id, second.filters) == (first.client_id, {"a", "b"})
    second.filters.clear()
    second.save()
    second.close()
    third = Session.claim(path, "heater", logger)
    assert (third.client_id, third.filters) == (first.client_id, set())
    third.close()


def test_two_that_run_at_once_have_two(path: Path, logger: BoundLogger) -> None:
    first = Session.claim(path, "heater", logger)
    first.save()
    with capture_logs() as logs:
        second = Session.claim(path, "heater", logger)
    second.save()
    assert (first.persistent, second.persistent) == (True, False)
    assert first.client_id != second.client_id
    assert [log["event"] for log in logs] == ["session_not_kept"]
    first.close()


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"client_id": "heater-1"',
        "[]",
        '{"client_id": "heater-1", "filters": "ab"}',
        '{"client_id": "", "filters": []}',
        '{"client_id": "cooler-1", "filters": ["a"]}',
    ],
)
def test_a_file_that_is_no_use_is_made_anew(path: Path, logger: BoundLogger, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    session = Session.claim(path, "heater", logger)
    assert session.client_id.startswith("heater-")
    assert session.client_id != "heater-1"
    assert session.filters == set()
    session.save()
    session.close()
    again = Session.claim(path, "heater", logger)
    assert again.client_id == session.client_id
    again.close()


def test_what_is_not_written_is_not_kept(
    path: Path, logger: BoundLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.claim(path, "heater", logger)
    monkeypatch.setattr(os, "pwrite", lambda *_: 3)
    with pytest.raises(OSError, match="No space"):
        session.save()
    assert not session.persistent
    session.close()


def test_where_nothing_can_be_written_it_is_not_kept(tmp_path: Path, logger: BoundLogger) -> None:
    (tmp_path / "data").write_text("in the way")
    with capture_logs() as logs:
        session = Session.claim(tmp_path / "data" / "session.json", "heater", logger)
    assert not session.persistent
    assert [(log["event"], log["log_level"]) for log in logs] == [("session_not_kept", "warning")]


def test_an_own_client_id(path: Path, logger: BoundLogger) -> None:
    first = Session.claim(path, "heater", logger, client_id="plant-1")
    first.save()
    second = Session.claim(path, "heater", logger, client_id="plant-1")
    first.close()
    assert first.client_id == "plant-1"
    # Two clients with one client id would disconnect each other.
    assert second.client_id != "plant-1"
    next_start = Session.claim(path, "heater", logger, client_id="plant-1")
    assert (next_start.client_id, next_start.persistent) == ("plant-1", True)
    next_start.close()
    changed = Session.claim(path, "heater", logger)
    assert changed.client_id.startswith("heater-")
    assert not changed.persistent
    changed.close()
