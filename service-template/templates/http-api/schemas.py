"""Requests and responses of the HTTP interface of {{ cookiecutter.service_slug }}."""

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from shared.mqtt import PayloadError, encode

# Fields of the message itself, which are not part of the result.
ENVELOPE = {"timestamp", "service", "trace_id", "request_id", "reply_to", "status", "command"}
_RESERVED = ENVELOPE | {"expires_at", "replay_id", "model", "self", "target", "timeout_seconds"}


class Status(BaseModel):
    """State of this service, as in its heartbeat."""

    service: str
    status: str = Field(description="online or degraded")
    reasons: list[str] = Field(description="Reasons why it is degraded")


class CommandRequest(BaseModel):
    """A command to another service."""

    command: str = Field(min_length=1, examples=["refresh"])
    arguments: dict[str, Any] = Field(default_factory=dict, description="Further fields")

    @field_validator("arguments")
    @classmethod
    def _can_be_sent(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if reserved := arguments.keys() & _RESERVED:
            message = f"not allowed as arguments: {', '.join(sorted(reserved))}"
            raise ValueError(message)
        try:
            encode(arguments)
        except PayloadError as error:
            raise ValueError(str(error)) from error
        return arguments


class CommandResponse(BaseModel):
    """Reply of the other service."""

    service: str
    status: Literal["ok", "error"]
    result: dict[str, Any]


class Problem(BaseModel):
    """Reason why there is no reply."""

    detail: str
    trace_id: str
