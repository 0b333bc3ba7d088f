"""Keep secrets out of the log: by the name of the key, and by their shape within text."""

import math
import re
from collections.abc import Mapping

from structlog.typing import EventDict, WrappedLogger

REDACTED = "[redacted]"

_SENSITIVE = (
    r"(?:password|passwd|passphrase|secret|token|api[_-]?key|private[_-]?key|credentials?"
    r"|authorization|cookie)"
)
_SENSITIVE_KEY = re.compile(rf"{_SENSITIVE}$", re.IGNORECASE)
_IN_TEXT = [
    # Authorization: Bearer abc, "authorization": "Token abc"
    re.compile(r"""(authorization["']?\s*[:=]\s*["']?(?:[a-z]+\s+)?)[^\s"',}]+""", re.IGNORECASE),
    re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE),
    # scheme://user:password@host
    # Within bounds and without going back, else the time grows with the square of the length.
    re.compile(r"([a-z][a-z0-9+.-]{0,30}://)[^\s/@]++(?=@)", re.IGNORECASE),
    # ?access_token=abc, password=abc, "api_key": "abc"
    re.compile(
        rf"""({_SENSITIVE}["']?\s*[=:]\s*["']?)(?!\[redacted\])[^\s"'&,;\}}\])]+""", re.IGNORECASE
    ),
    re.compile(r"([?&](?:key|auth|sig|signature)=)[^\s\"'&#]+", re.IGNORECASE),
]
_MAX_DEPTH = 8


def redact_text(text: str) -> str:
    """`text` without bearer tokens, URL credentials and the values of secret-looking names."""
    for pattern in _IN_TEXT:
        text = pattern.sub(rf"\1{REDACTED}", text)
    return text


def redact(value: object, *, depth: int = 0) -> object:
    """`value` as plain data that is safe to log, nested mappings and sequences included."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth < _MAX_DEPTH:
        match value:
            case Mapping():
                return {str(key): _redact_item(key, item, depth) for key, item in value.items()}
            case list() | tuple() | set() | frozenset():
                return [redact(item, depth=depth + 1) for item in value]
    return redact_text(repr(value) if isinstance(value, BaseException) else str(value))


def _redact_item(key: object, item: object, depth: int) -> object:
    if item and _SENSITIVE_KEY.search(str(key)):
        return REDACTED
    return redact(item, depth=depth + 1)


def redact_event(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Structlog processor; belongs right before the renderer."""
    return {key: _redact_item(key, item, 0) for key, item in event_dict.items()}
