"""MQTT session of one instance of a service, kept from one start to the next."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError
from structlog.stdlib import BoundLogger


class Session:
    """A client id, and the topic filters that the broker may have subscriptions to.

    A `persistent` session is used again by the next start of this instance. The broker queues
    messages at QoS 1 for it until then.
    """

    def __init__(
        self, client_id: str, filters: Iterable[str] = (), descriptor: int | None = None
    ) -> None:
        self.client_id = client_id
        self.filters = set(filters)
        self.persistent = False
        self._descriptor = descriptor

    @classmethod
    def new(cls, service: str) -> Self:
        """Return a session for this process only."""
        return cls(f"{service}-{secrets.token_hex(4)}")

    @classmethod
    def claim(cls, path: Path, service: str, logger: BoundLogger, *, client_id: str = "") -> Self:
        """Return the session in the file `path`, which is created if it is missing.

        The file stays locked until `close` or the end of the process. A second instance on the
        same volume gets a new session: two clients with one client id would disconnect each other
        forever. An instance that cannot write the file gets a new session as well. `client_id` is
        used instead of a random one.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            logger.warning("session_not_kept", path=str(path), error=error)
            return cls(client_id) if client_id else cls.new(service)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            logger.info("session_not_kept", path=str(path), error=error)
            return cls.new(service)
        try:
            content = _Content.model_validate_json(path.read_bytes())
        except ValidationError:
            # The file is new, or a crash has truncated it.
            content = _Content(client_id="", filters=[])
        if client_id and content.client_id != client_id:
            return cls(client_id, descriptor=descriptor)
        if not client_id and not content.client_id.startswith(f"{service}-"):
            return cls(cls.new(service).client_id, descriptor=descriptor)
        session = cls(content.client_id, content.filters, descriptor)
        session.persistent = True
        return session

    def save(self) -> None:
        """Write the session for the next start. Raises OSError."""
        if self._descriptor is None:
            return
        content = _Content(client_id=self.client_id, filters=sorted(self.filters))
        data = content.model_dump_json().encode()
        # Write in place, because a new file would not be locked.
        if os.pwrite(self._descriptor, data, 0) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(self._descriptor, len(data))
        self.persistent = True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Content(BaseModel):
    """Content of the session file."""

    client_id: str
    filters: list[str]
