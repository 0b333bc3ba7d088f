"""Remove secrets from log lines, by their values, the name of the key and patterns in text."""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from urllib.parse import quote

from structlog.typing import EventDict, WrappedLogger

from shared.timestamps import format_utc

REDACTED = "[redacted]"

_SENSITIVE = (
    r"(?:passwords?|passwd|passphrases?|\bpass|_pass|pwd|secrets?|tokens?|api[_-]?keys?"
    r"|private[_-]?keys?|credentials?|authorization|cookies?)"
)
_SENSITIVE_KEY = re.compile(rf"{_SENSITIVE}$", re.IGNORECASE)
_IN_TEXT = [
    # Authorization: Bearer abc, "authorization": "Token abc"
    re.compile(r"""(authorization["']?\s*[:=]\s*["']?(?:[a-z]+\s+)?)[^\s"',}]+""", re.IGNORECASE),
    re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE),
    # In a header, such as `Cookie: a=b; session=abc`
    re.compile(r"""(cookie["']?\s*[:=]\s*["']?)[^\r\n"']+""", re.IGNORECASE),
    # password="a b", "api_key": 'a b'
    re.compile(
        rf"""({_SENSITIVE}["']?\s*[=:]\s*(["']))(?!\[redacted\])(?:(?!\2)[^\\\r\n]|\\.)++""",
        re.IGNORECASE,
    ),
    # ?access_token=abc, password=abc
    re.compile(
        rf"""({_SENSITIVE}["']?\s*[=:]\s*)(?!["']|\[redacted\])(?:[^\s"'&,;\}}\])]|[,;](?=\S))++""",
        re.IGNORECASE,
    ),
    re.compile(r"([?&](?:key|auth|sig|signature)=)[^\s\"'&#]+", re.IGNORECASE),
]
# scheme://user:password@host, where the password may hold characters that should be escaped. The
# bounds and possessive quantifiers keep the time linear in the length of the text.
_IN_ADDRESS = re.compile(
    r"""([a-z][a-z0-9+.-]{0,30}://)
    (?:[^\s/@:"']{0,200}+:(?!\d{1,5}[/?#])(?:[^\s@"']{1,200}+@)++|(?:[^\s/?#@"']{1,200}+@)++)""",
    re.IGNORECASE | re.VERBOSE,
)
_MAX_DEPTH = 8
# A shorter one is part of too many words.
_MIN_SECRET_LENGTH = 4
_MIN_SECRET_LENGTH_WITHIN_WORDS = 8
# Patterns, the longest first, because one secret may begin with another one.
_secrets: list[str] = []


def hide_secrets(values: Iterable[str]) -> None:
    """Let `redact_text` remove these values, wherever they are. Values below 4 characters stay.

    Values below 8 characters are removed as whole words only.
    """
    patterns = set(_secrets)
    for value in values:
        if len(value) < _MIN_SECRET_LENGTH:
            continue
        is_short = len(value) < _MIN_SECRET_LENGTH_WITHIN_WORDS
        # As it is, in a URL, and in the `repr` of an error or of a list.
        for form in map(re.escape, (value, quote(value, safe=""), repr(value)[1:-1])):
            patterns.add(rf"(?<!\w){form}(?!\w)" if is_short else form)
    _secrets[:] = sorted(patterns, key=len, reverse=True)


def redact_text(text: str) -> str:
    """Return `text` without secrets.

    These are the values of the loaded settings, bearer tokens, passwords in URLs and values of
    sensitive names.
    """
    if _secrets:
        text = re.sub("|".join(_secrets), REDACTED, text)
    for pattern in _IN_TEXT:
        text = pattern.sub(rf"\1{REDACTED}", text)
    return _IN_ADDRESS.sub(rf"\1{REDACTED}@", text)


def redact(value: object, *, depth: int = 0) -> object:
    """Return `value` as plain data that is safe to log, including nested values."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime) and value.tzinfo:
        return format_utc(value)
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
    """Redact a log line. Structlog calls this right before the renderer."""
    return {key: _redact_item(key, item, 0) for key, item in event_dict.items()}
