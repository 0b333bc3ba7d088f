"""Trace id, which follows one piece of work through handlers, log lines and messages."""

import secrets
from contextvars import ContextVar

MAX_ID_LENGTH = 200
_trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)


def new_trace_id() -> str:
    return secrets.token_hex(16)


def current_trace_id() -> str | None:
    return _trace_id.get()


class bind_trace_id:  # noqa: N801 - used as a function
    """Use `trace_id` in this block and in every task that is started inside it.

    A class costs less than half of a `@contextmanager`, and every received message enters it.
    """

    __slots__ = ("_id", "_token")

    def __init__(self, trace_id: str) -> None:
        self._id = trace_id

    def __enter__(self) -> None:
        self._token = _trace_id.set(self._id)

    def __exit__(self, *_error: object) -> None:
        _trace_id.reset(self._token)
