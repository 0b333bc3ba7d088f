"""Files that are written whole or not at all."""

import errno
import json
import os
import stat
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.files import SchemaVersionError, atomic_write, read_envelope, write_envelope


def test_writes_text_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, "für")
    assert path.read_bytes() == "für".encode()
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_keeps_the_mode_or_takes_the_one_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, "a")
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o640)
    atomic_write(path, "b")
    assert path.stat().st_mode & 0o777 == 0o640
    atomic_write(path, "c", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_content_is_on_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("folder" if is_folder else "file")
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    atomic_write(tmp_path / "file", "content")
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_envelope_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    now = datetime(2026, 1, 2, tzinfo=UTC)
    write_envelope(
        path, {"kwh": 4.5}, produced_by="forecast", schema_version="1.2", now=lambda: now
    )
    assert json.loads(path.read_text()) == {
        "_metadata": {
            "schema_version": "1.2",
            "produced_by": "forecast",
            "produced_at": "2026-01-02T00:00:00Z",
        },
        "data": {"kwh": 4.5},
    }
    assert read_envelope(path, schema_version="1.0") == {"kwh": 4.5}


def test_the_time_of_an_envelope_is_now(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    before = datetime.now(UTC)
    write_envelope(path, [], produced_by="test")
    written = datetime.fromisoformat(json.loads(path.read_text())["_metadata"]["produced_at"])
    assert before <= written <= datetime.now(UTC)


def test_another_major_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_envelope(path, [], produced_by="test", schema_version="2.0")
    with pytest.raises(SchemaVersionError, match=r"2\.0"):
        read_envelope(path, schema_version="1.9")


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"_metadata": {}}', '{"_metadata": 1}', "{", "[" * 100_000],
    ids=["list", "empty", "no version", "no header", "cut off", "deep"],
)
def test_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"_metadata|Expecting|nested"):
        read_envelope(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_know_is_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(ValueError, match="JSON"):
        write_envelope(path, {"kwh": value}, produced_by="test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "is_failure"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_sync_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_failure: bool
) -> None:
    fsync = os.fsync

    def fail_for_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    with pytest.raises(OSError, match="error") if is_failure else nullcontext():
        atomic_write(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"
