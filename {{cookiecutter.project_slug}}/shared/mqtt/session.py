"""MQTT session of one instance of a service, kept from one start to the next."""

import errno
import fcntl
import itertools
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError
from structlog.stdlib import BoundLogger

from shared.mqtt.journal import fatal


class Session:
    """A client id, and the topic filters that the broker may have subscriptions to.

    A session in a file is `kept`: the next start of this instance uses it again, and the broker
    queues messages at QoS 1 for it until then. Any other session ends with its connection.
    """

    def __init__(
        self, client_id: str, filters: Iterable[str] = (), descriptor: int | None = None
    ) -> None:
        self.client_id = client_id
        self.filters = set(filters)
        self.persistent = False
        # Deaths of the process by message, for `Journal`. None if the last process ended cleanly.
        self.deaths: dict[str, int] | None = None
        self._descriptor = descriptor
        self._saved = False

    @classmethod
    def new(cls, service: str) -> Self:
        """Return a session that is not kept."""
        return cls(f"{service}-{secrets.token_hex(4)}")

    @classmethod
    def claim(
        cls,
        directory: Path,
        service: str,
        logger: BoundLogger,
        *,
        client_id: str = "",
        instance: int | None = None,
    ) -> Self:
        """Return the first session in `directory` that no other process uses.

        The sessions are the files `mqtt-session-1.json`, `mqtt-session-2.json` and so on. A file
        stays locked until `close` or the end of the process, so that a restarted replica gets the
        session of the one that ended. `instance` selects a file by its number. An instance that
        cannot lock a file gets a session that is not kept. `client_id` is used instead of a random
        one, with the number of the file from the second file on.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            slot, descriptor = _lock(directory, [instance] if instance else itertools.count(1))
        except BlockingIOError as error:
            # Two clients with one client id would disconnect each other forever.
            logger.warning("session_not_kept", directory=str(directory), error=error)
            return cls.new(service)
        except OSError as error:
            logger.warning("session_not_kept", directory=str(directory), error=error)
            return cls(client_id) if client_id else cls.new(service)
        if client_id and slot > 1:
            client_id = f"{client_id}-{slot}"
        try:
            content = _Content.model_validate_json(_path(directory, slot).read_bytes())
        except ValidationError:
            # The file is new, or a crash has truncated it.
            content = _Content(client_id="", filters=[])
        if client_id and content.client_id != client_id:
            return cls(client_id, descriptor=descriptor)
        if not client_id and not content.client_id.startswith(f"{service}-"):
            return cls(cls.new(service).client_id, descriptor=descriptor)
        session = cls(content.client_id, content.filters, descriptor)
        session.persistent = True
        session.deaths = content.deaths if content.deaths or not content.ended else None
        return session

    @property
    def kept(self) -> bool:
        return self._descriptor is not None

    def save(self) -> None:
        """Write the session for the next start. Raises OSError."""
        self._saved = True
        self._write(self.deaths or {}, ended=False)

    def close(self) -> None:
        """Record the orderly end of the process. Raises OSError."""
        if self._descriptor is None:
            return
        try:
            if self._saved:
                self._write(fatal(self.deaths or {}), ended=True)
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, deaths: dict[str, int], *, ended: bool) -> None:
        if self._descriptor is None:
            return
        content = _Content(
            client_id=self.client_id, filters=sorted(self.filters), ended=ended, deaths=deaths
        )
        data = content.model_dump_json().encode()
        # Write in place, because a new file would not be locked.
        if os.pwrite(self._descriptor, data, 0) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(self._descriptor, len(data))
        self.persistent = True


class _Content(BaseModel):
    """Content of the session file."""

    client_id: str
    filters: list[str]
    ended: bool = True
    deaths: dict[str, int] = {}


def _path(directory: Path, slot: int) -> Path:
    return directory / f"mqtt-session-{slot}.json"


def _lock(directory: Path, slots: Iterable[int]) -> tuple[int, int]:
    """Return the number of the first free file, with its descriptor. Raises OSError."""
    for slot in slots:
        descriptor = os.open(_path(directory, slot), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        else:
            return slot, descriptor
    raise BlockingIOError(errno.EWOULDBLOCK, "another process uses this session")
