"""State of a service, on disks that do not always work."""

import errno
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel, ConfigDict, Field
from structlog.stdlib import BoundLogger
from structlog.testing import capture_logs

from shared.state import StateFile


class Counter(BaseModel):
    counter: int = Field(default=0, ge=0)
    since: datetime | None = None


@pytest.fixture
def state(tmp_path: Path, logger: BoundLogger) -> StateFile:
    return StateFile(tmp_path / "data" / "state.json", logger)


def test_starts_empty_and_comes_back_with_the_time(state: StateFile) -> None:
    assert state.load() == {}
    before = datetime.now(UTC)
    assert state.save({"counter": 3, "name": "Küche"})
    loaded = state.load()
    assert before <= datetime.fromisoformat(loaded.pop("saved_at")) <= datetime.now(UTC)
    assert loaded == {"counter": 3, "name": "Küche"}


def test_a_model_comes_back(state: StateFile) -> None:
    assert state.load(Counter) == Counter()
    kept = Counter(counter=3, since=datetime(2026, 1, 2, tzinfo=UTC))
    assert state.save(kept)
    assert state.load(Counter) == kept


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    counter: int = Field(default=0, alias="count")


class Dated(BaseModel):
    saved_at: datetime | None = None


def test_a_strict_model_with_other_names_comes_back(state: StateFile) -> None:
    assert state.save(Strict(count=3))
    assert state.load(Strict) == Strict(count=3)


def test_a_model_may_have_the_time(state: StateFile) -> None:
    assert state.save(Dated())
    assert state.load(Dated).saved_at is not None


@pytest.mark.parametrize("content", ['{"counter": null}', '{"counter": -1, "since": "?"}', "[]"])
def test_what_does_not_fit_the_model_is_set_aside(state: StateFile, content: str) -> None:
    state.path.parent.mkdir()
    state.path.write_text(content)
    with capture_logs() as logs:
        assert state.load(Counter) == Counter()
        assert state.load(Counter) == Counter()
    assert [(log["event"], log["log_level"]) for log in logs] == [("state_corrupt", "warning")]
    assert state.path.with_name("state.json.corrupt").read_text() == content


@pytest.mark.parametrize("content", [b'{"counter": 3', b"", b"\xff\xfe", b"[1]", b"[" * 100_000])
def test_a_corrupt_file_is_set_aside_with_a_warning(state: StateFile, content: bytes) -> None:
    state.path.parent.mkdir()
    state.path.write_bytes(content)
    with capture_logs() as logs:
        assert state.load() == {}
        assert state.load() == {}
    assert [(log["event"], log["log_level"]) for log in logs] == [("state_corrupt", "warning")]
    assert state.path.with_name("state.json.corrupt").read_bytes() == content
    assert state.save({"counter": 4})


def test_a_corrupt_file_in_a_folder_that_cannot_change_is_told(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.path.parent.mkdir()
    state.path.write_text("{")

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", fail)
    with capture_logs() as logs:
        assert state.load() == {}
    assert [log["event"] for log in logs] == ["state_corrupt"]
    assert "Read-only" in str(logs[0]["error"])


def test_a_file_that_cannot_be_read_is_no_crash(state: StateFile) -> None:
    state.path.mkdir(parents=True)
    with capture_logs() as logs:
        assert state.load() == {}
    assert [(log["event"], log["log_level"]) for log in logs] == [("state_not_read", "warning")]


@pytest.mark.parametrize(
    ("module", "function", "number"),
    [(os, "fsync", errno.ENOSPC), (tempfile, "mkstemp", errno.EROFS)],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_nothing_is_told_once_and_again_after_it_worked(
    state: StateFile,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    function: str,
    number: int,
) -> None:
    assert state.save({"counter": 1})

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for _ in range(2):
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(module, function, fail)
            assert not state.save({"counter": 2})
            assert not state.save({"counter": 2})
        assert [(log["event"], log["log_level"]) for log in logs] == [
            ("state_not_saved", "warning")
        ]
        assert state.load()["counter"] == 1
        assert state.save({"counter": 1})


def test_a_file_in_place_of_the_folder_is_no_crash(tmp_path: Path, logger: BoundLogger) -> None:
    (tmp_path / "data").write_text("in the way")
    assert not StateFile(tmp_path / "data" / "state.json", logger).save({})


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_what_is_no_json_is_told(state: StateFile, value: object) -> None:
    with capture_logs() as logs:
        assert not state.save({"value": value})
    assert [log["event"] for log in logs] == ["state_not_saved"]
