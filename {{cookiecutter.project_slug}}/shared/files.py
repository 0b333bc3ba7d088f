"""Files that are written completely or not at all."""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.timestamps import format_utc

_DEFAULT_MODE = 0o644


class SchemaVersionError(Exception):
    """A file has a schema version that its reader does not support."""


def atomic_write(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Replace the content of `path` in one step that survives a power cut. Raises OSError.

    Readers see either the old or the new content. An existing file keeps its mode by default.
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
            # Sync the content before the rename, and the rename before this function returns.
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory. The file itself is synced.
        if error.errno != errno.EINVAL:
            raise
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
    """Write `data` as JSON for other programs, with a `_metadata` header. Raises OSError.

    Raises ValueError for NaN and infinity, and TypeError for other data that is not JSON.
    """
    metadata = {
        "schema_version": schema_version,
        "produced_by": produced_by,
        "produced_at": format_utc(now()),
    }
    document = {"_metadata": metadata, "data": data}
    content = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
    atomic_write(path, content + "\n")


def read_envelope(path: Path, *, schema_version: str = "1.0") -> Any:  # noqa: ANN401 - any JSON
    """Return `data` from a file that `write_envelope` wrote.

    A different minor version is accepted. Raises OSError, SchemaVersionError for another major
    version, and ValueError for a file without the header.
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
