"""The session of one instance, from one start to the next."""

import os
from pathlib import Path

import pytest
from structlog.stdlib import BoundLogger
from structlog.testing import capture_logs

from shared.mqtt.session import Session


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_the_next_start_goes_on_with_it(directory: Path, logger: BoundLogger) -> None:
    first = Session.claim(directory, "heater", logger)
    first.filters |= {"a", "b"}
    first.save()
    first.close()
    second = Session.claim(directory, "heater", logger)
    assert second.persistent
    assert (second.client_id, second.filters) == (first.client_id, {"a", "b"})
    second.filters.clear()
    second.save()
    second.close()
    third = Session.claim(directory, "heater", logger)
    assert (third.client_id, third.filters) == (first.client_id, set())
    third.close()


def test_each_replica_has_its_own_and_a_restarted_one_takes_over_that_of_the_dead(
    directory: Path, logger: BoundLogger
) -> None:
    sessions = [Session.claim(directory, "heater", logger) for _ in range(3)]
    for session in sessions:
        session.save()
    assert len({session.client_id for session in sessions}) == 3
    # As the system does it for a process that was killed.
    os.close(sessions[1]._descriptor or 0)
    restarted = Session.claim(directory, "heater", logger)
    assert restarted.persistent
    assert restarted.client_id == sessions[1].client_id
    for session in (sessions[0], sessions[2], restarted):
        session.close()


def test_an_instance_has_the_session_of_its_number(directory: Path, logger: BoundLogger) -> None:
    second = Session.claim(directory, "heater", logger, instance=2)
    second.save()
    with capture_logs() as logs:
        twin = Session.claim(directory, "heater", logger, instance=2)
    assert not twin.kept
    assert twin.client_id != second.client_id
    assert [(log["event"], log["log_level"]) for log in logs] == [("session_not_kept", "warning")]
    second.close()
    again = Session.claim(directory, "heater", logger, instance=2)
    assert again.client_id == second.client_id
    again.close()
    assert [path.name for path in directory.iterdir()] == ["mqtt-session-2.json"]


def test_only_a_process_that_did_not_end_in_order_leaves_a_journal(
    directory: Path, logger: BoundLogger
) -> None:
    killed = Session.claim(directory, "heater", logger)
    assert killed.deaths is None
    killed.save()
    os.close(killed._descriptor or 0)
    second = Session.claim(directory, "heater", logger)
    assert second.deaths == {}
    second.deaths |= {"fatal": 3, "finished": 2}
    second.save()
    second.close()
    # A retained message that is fatal comes with every start.
    third = Session.claim(directory, "heater", logger)
    assert third.deaths == {"fatal": 3}
    third.close()


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
def test_a_file_that_is_no_use_is_made_anew(
    directory: Path, logger: BoundLogger, content: str
) -> None:
    directory.mkdir()
    (directory / "mqtt-session-1.json").write_text(content)
    session = Session.claim(directory, "heater", logger)
    assert session.client_id.startswith("heater-")
    assert session.client_id != "heater-1"
    assert session.filters == set()
    session.save()
    session.close()
    again = Session.claim(directory, "heater", logger)
    assert again.client_id == session.client_id
    again.close()


def test_what_is_not_written_is_not_kept(
    directory: Path, logger: BoundLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.claim(directory, "heater", logger)
    monkeypatch.setattr(os, "pwrite", lambda *_: 3)
    for write in (session.save, session.close):
        with pytest.raises(OSError, match="No space"):
            write()
    assert not session.persistent
    assert not session.kept


def test_where_nothing_can_be_written_it_is_not_kept(tmp_path: Path, logger: BoundLogger) -> None:
    (tmp_path / "data").write_text("in the way")
    with capture_logs() as logs:
        session = Session.claim(tmp_path / "data", "heater", logger)
    assert not session.persistent
    assert [(log["event"], log["log_level"]) for log in logs] == [("session_not_kept", "warning")]


def test_an_own_client_id(directory: Path, logger: BoundLogger) -> None:
    first = Session.claim(directory, "heater", logger, client_id="plant-1")
    first.save()
    second = Session.claim(directory, "heater", logger, client_id="plant-1")
    first.close()
    second.close()
    # Two clients with one client id would disconnect each other.
    assert (first.client_id, second.client_id) == ("plant-1", "plant-1-2")
    next_start = Session.claim(directory, "heater", logger, client_id="plant-1")
    assert (next_start.client_id, next_start.persistent) == ("plant-1", True)
    next_start.close()
    changed = Session.claim(directory, "heater", logger)
    assert changed.client_id.startswith("heater-")
    assert not changed.persistent
    changed.close()
