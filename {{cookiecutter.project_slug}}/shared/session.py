"""What the broker knows one instance of a service by, from one start to the next."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from structlog.stdlib import BoundLogger


class Session:
    """A client id, and the topic filters subscribed to under it.

    `is_kept` says that the next start of this instance goes on with it, so that the broker may
    collect messages at QoS 1 meanwhile.
    """

    def __init__(
        self, client_id: str, filters: Iterable[str] = (), descriptor: int | None = None
    ) -> None:
        self.client_id = client_id
        self._filters = set(filters)
        self._descriptor = descriptor

    @classmethod
    def new(cls, service: str) -> Self:
        """One for this process alone."""
        return cls(f"{service}-{secrets.token_hex(4)}")

    @classmethod
    def claim(cls, path: Path, service: str, logger: BoundLogger) -> Self:
        """The one in this file, which is made where it is missing.

        The file stays locked until `close` or the end of the process. Another instance on the same
        volume gets a session for itself alone: with one client id, two would take the connection
        from each other for ever. So does an instance that cannot write.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            logger.warning("session_not_kept", path=str(path), error=error)
            return cls.new(service)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            logger.info("session_not_kept", path=str(path), error=error)
            return cls.new(service)
        try:
            content = json.loads(path.read_bytes())
            return cls(str(content["client_id"]), map(str, content["filters"]), descriptor)
        except (ValueError, KeyError, TypeError):
            # A new file, or one that was cut off.
            return cls(cls.new(service).client_id, descriptor=descriptor)

    @property
    def is_kept(self) -> bool:
        return self._descriptor is not None

    def change(self, wanted: Iterable[str]) -> set[str]:
        """From now on these filters are subscribed to; returns those that no longer are."""
        before, self._filters = self._filters, set(wanted)
        return before - self._filters

    def save(self) -> None:
        """Write it down for the next start; raises OSError."""
        if self._descriptor is None:
            return
        content = {"client_id": self.client_id, "filters": sorted(self._filters)}
        data = json.dumps(content).encode()
        # In place, since a new file would not be locked.
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
