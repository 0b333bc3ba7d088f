"""Requests and responses of the HTTP interface of {{ cookiecutter.service_slug }}."""

from typing import Any, Literal

from pydantic import BaseModel, Field

# Fields of the message itself, which are not part of the result.
ENVELOPE = {"timestamp", "service", "trace_id", "request_id", "reply_to", "status", "command"}


class Status(BaseModel):
    """State of this service, as in its heartbeat."""

    service: str
    status: str = Field(description="online or degraded")
    reasons: list[str] = Field(description="Reasons why it is degraded")


class CommandResponse(BaseModel):
    """Reply of the other service."""

    service: str
    status: Literal["ok", "error"]
    result: dict[str, Any]
