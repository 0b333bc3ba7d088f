"""Payloads of messages: JSON, text or bytes."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, NoReturn

from pydantic import BaseModel

from shared.mqtt.errors import PayloadError
from shared.schemas import dump_message

type Payload = Mapping[str, Any] | BaseModel | list[Any] | str | bytes | bool | float | None
type PayloadFormat = Literal["json", "text", "bytes", "auto"]


def encode(payload: Payload) -> bytes:
    """Return the bytes to publish. Raises PayloadError."""
    try:
        match payload:
            case dict():
                # First, because most payloads are dictionaries and the other checks take longer.
                pass
            case None:
                return b""
            case bytes():
                return payload
            case str():
                return payload.encode()
            case BaseModel():
                payload = dump_message(payload)
            case Mapping():
                payload = dict(payload)
        return _ENCODER.encode(payload).encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = f"the payload cannot be encoded as JSON: {error}"
        raise PayloadError(message) from error


def decode(payload: bytes, payload_format: PayloadFormat) -> Any:  # noqa: ANN401 - any JSON
    """Return the content of a received payload. Raises PayloadError."""
    if payload_format == "bytes":
        return payload
    if payload_format == "auto":
        return _decode_any(payload)
    try:
        text = payload.decode()
        if payload_format == "text":
            return text
        # An empty payload clears a retained message (section 3.3.1.3), so it is not an error.
        # RFC 8259 lets a parser skip a byte order mark, which some editors write.
        return _DECODER.decode(text.removeprefix("\ufeff")) if text else None
    except (ValueError, RecursionError) as error:
        expected = "JSON" if payload_format == "json" else "UTF-8 text"
        message = f"the payload is not valid {expected}: {error}"
        raise PayloadError(message) from error


def _decode_any(payload: bytes) -> Any:  # noqa: ANN401 - any JSON
    formats: tuple[PayloadFormat, ...] = ("json", "text")
    for payload_format in formats:
        with suppress(PayloadError):
            return decode(payload, payload_format)
    return payload


def _reject_constant(name: str) -> NoReturn:
    message = f"{name} is not valid JSON"
    raise ValueError(message)


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        message = f"{number} is too large for a number"
        raise ValueError(message)
    return value


# Python writes and reads NaN and Infinity by default, but JSON does not include them.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_reject_constant)
