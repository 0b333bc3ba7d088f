"""Files that other processes read: written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_DEFAULT_MODE = 0o644


class SchemaVersionError(Exception):
    """A file was written by a version that its reader does not understand."""


def atomic_write(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Replace `path` by `content` in one step that also survives a power cut; raises OSError.

    A reader sees the old content or the new. The mode is `mode`, else that of the file there is.
    """
    data = content.encode() if isinstance(content, str) else content
    if mode is None:
        mode = path.stat().st_mode & 0o7777 if path.exists() else _DEFAULT_MODE
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            # The content before the name, the name before we return.
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_envelope(
    path: Path,
    data: object,
    *,
    produced_by: str,
    schema_version: str = "1.0",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Write `data` as JSON for other programs, under a `_metadata` header; raises OSError.

    Raises ValueError for NaN and infinity, which JSON does not know, and TypeError for what it
    cannot hold.
    """
    metadata = {
        "schema_version": schema_version,
        "produced_by": produced_by,
        "produced_at": now().isoformat(),
    }
    document = {"_metadata": metadata, "data": data}
    content = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
    atomic_write(path, content + "\n")


def read_envelope(path: Path, *, schema_version: str = "1.0") -> Any:  # noqa: ANN401 - any JSON
    """Read `data` from such a file.

    A newer minor version is read, another major version raises SchemaVersionError. Raises OSError
    and, for a file of another shape, ValueError.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        message = f"{path} is nested too deeply"
        raise ValueError(message) from error
    try:
        found = str(document["_metadata"]["schema_version"])
        data = document["data"]
    except (KeyError, TypeError) as error:
        message = f"{path} has no _metadata header with a schema_version"
        raise ValueError(message) from error
    if found.partition(".")[0] != schema_version.partition(".")[0]:
        message = f"{path} has schema version {found}, expected {schema_version}"
        raise SchemaVersionError(message)
    return data
