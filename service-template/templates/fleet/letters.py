"""Dead letters in SQLite, and the messages that replay them."""

import base64
import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from schemas import KeptLetter, Kind

from shared.config import ConfigurationError
from shared.mqtt import PayloadError, encode
from shared.mqtt.topics import matches, validate_topic
from shared.schemas import Command, DeadLetter

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA temp_store = MEMORY;
CREATE TABLE IF NOT EXISTS letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL UNIQUE,
    received_at REAL NOT NULL,
    kind TEXT NOT NULL,
    content TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS letters_by_kind ON letters (kind, id);
CREATE INDEX IF NOT EXISTS letters_by_age ON letters (received_at);
CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""


class Letters:
    """The dead letters of all services, newest first."""

    def __init__(self, path: Path, *, max_count: int, max_days: float) -> None:
        """Open the database. Raises ConfigurationError if that is not possible."""
        self._max_count, self._max_seconds = max_count, max_days * 86400
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, autocommit=True)
            self._database.executescript(_SCHEMA)
            self.delete_old()
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError([f"DATA_DIR: cannot open {path}: {error}"]) from error

    def close(self) -> None:
        self._database.close()

    def key(self) -> bytes:
        """Return the random key that signs sessions. It outlives a restart."""
        self._database.execute(
            "INSERT OR IGNORE INTO keys VALUES ('session', ?)", [secrets.token_bytes(32)]
        )
        value: bytes = self._value("SELECT value FROM keys WHERE name = 'session'")
        return value

    @property
    def newest(self) -> int:
        newest: int = self._value("SELECT coalesce(max(seq), 0) FROM sqlite_sequence")
        return newest

    def add(self, letter: DeadLetter) -> KeptLetter | None:
        """Keep a letter. Return None for one that is known already."""
        content = letter.model_dump_json()
        kind = f"{letter.service}: {letter.error_type} on {letter.original_topic}"
        digest = hashlib.sha256(content.encode()).hexdigest()
        now = time.time()
        added = self._database.execute(
            "INSERT OR IGNORE INTO letters (digest, received_at, kind, content)"
            " VALUES (?, ?, ?, ?)",
            [digest, now, kind, content],
        )
        if not added.rowcount:
            return None
        excess = self.count() - self._max_count
        if excess > 0:
            self._database.execute(
                "DELETE FROM letters WHERE id IN (SELECT id FROM letters ORDER BY id LIMIT ?)",
                [excess],
            )
        return _kept(added.lastrowid, now, kind, content)

    def delete_old(self) -> bool:
        """Delete letters that are too old. Return whether there were any."""
        oldest = time.time() - self._max_seconds
        deleted = self._database.execute("DELETE FROM letters WHERE received_at < ?", [oldest])
        return deleted.rowcount > 0

    def count(self) -> int:
        count: int = self._value("SELECT count(*) FROM letters")
        return count

    def count_kind(self, kind: str) -> int:
        count: int = self._value("SELECT count(*) FROM letters WHERE kind = ?", kind)
        return count

    def counts(self) -> list[Kind]:
        """Return the kinds of letters, the most frequent one first."""
        rows = self._database.execute(
            "SELECT kind, count(*) FROM letters GROUP BY kind ORDER BY 2 DESC, 1"
        )
        return [Kind(kind=kind, count=count) for kind, count in rows]

    def find(
        self, *, kind: str = "", text: str = "", before: int | None = None, limit: int = 50
    ) -> list[KeptLetter]:
        """Return letters with an id below `before`, whose content holds a text."""
        # The content is JSON, in which quotes, backslashes and line ends are escaped.
        escaped = json.dumps(text, ensure_ascii=False)[1:-1]
        pattern = f"%{escaped.replace('\\', '\\\\').replace('%', '\\%').replace('_', '\\_')}%"
        rows = self._database.execute(
            "SELECT id, received_at, kind, content FROM letters"
            " WHERE (:kind = '' OR kind = :kind) AND (:before IS NULL OR id < :before)"
            " AND (:text = '' OR content LIKE :pattern ESCAPE '\\') ORDER BY id DESC LIMIT :limit",
            {"kind": kind, "text": text, "before": before, "pattern": pattern, "limit": limit},
        )
        return [_kept(*row) for row in rows]

    def get(self, letter_id: int) -> KeptLetter | None:
        query = "SELECT id, received_at, kind, content FROM letters WHERE id = ?"
        row = self._database.execute(query, [letter_id]).fetchone()
        return _kept(*row) if row else None

    def oldest_first(self, kind: str) -> Iterator[KeptLetter]:
        """Yield the letters of a kind that still exist when their turn comes."""
        query = "SELECT id FROM letters WHERE kind = ? ORDER BY id"
        # One letter in memory at a time: each may have 64 KiB.
        ids = self._database.execute(query, [kind]).fetchall()
        return (letter for (letter_id,) in ids if (letter := self.get(letter_id)))

    def discard(self, letter_id: int) -> int:
        return self._database.execute("DELETE FROM letters WHERE id = ?", [letter_id]).rowcount

    def discard_kind(self, kind: str) -> int:
        return self._database.execute("DELETE FROM letters WHERE kind = ?", [kind]).rowcount

    def _value(self, query: str, *parameters: str) -> Any:  # noqa: ANN401 - any column
        return self._database.execute(query, parameters).fetchone()[0]


def _kept(letter_id: int | None, received_at: float, kind: str, content: str) -> KeptLetter:
    received = datetime.fromtimestamp(received_at, UTC)
    fields = {"id": letter_id, "kind": kind, "received_at": received}
    return KeptLetter.model_validate({**json.loads(content), **fields})


def original_payload(letter: DeadLetter) -> bytes:
    """Return the bytes of the failed message. Raises ValueError for invalid base64."""
    if letter.encoding == "base64":
        return base64.b64decode(letter.payload, validate=True)
    return letter.payload.encode()


def rejection(letter: KeptLetter, topic_prefix: str, max_age_seconds: float) -> str | None:
    """Return why a letter cannot be replayed, or None."""
    if letter.payload_sha256:
        return "The payload was cut, so the message is not complete."
    try:
        validate_topic(letter.original_topic)
        payload = original_payload(letter)
        if not matches(f"{topic_prefix}/coordinator/command/+", letter.original_topic):
            return None
        command = Command.model_validate_json(payload)
    except ValidationError:
        return None
    except ValueError as error:
        return f"The letter is not valid: {error}"
    now = datetime.now(UTC)
    sent, expires = command.timestamp or now, command.expires_at or now
    is_too_old = 0 < max_age_seconds < (now - sent) / timedelta(seconds=1)
    if is_too_old or expires < now:
        return "The command is too old. Its service would reject it."
    return None


def replayed_payload(letter: KeptLetter, topic_prefix: str) -> bytes:
    """Return the payload of a replay.

    A JSON object of these services gets the trace id of the letter, and an id that tells the
    replay from the original. Everything else stays as it is, byte for byte.
    """
    payload = original_payload(letter)
    if not letter.original_topic.startswith(f"{topic_prefix}/"):
        return payload
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        return payload
    if not isinstance(content, dict):
        return payload
    trace_id = content.get("trace_id") or letter.trace_id
    replay_id = f"{letter.id}-{secrets.token_hex(8)}"
    try:
        return encode({**content, "trace_id": trace_id, "replay_id": replay_id})
    except PayloadError:
        # Python reads a NaN, which JSON does not have.
        return payload
