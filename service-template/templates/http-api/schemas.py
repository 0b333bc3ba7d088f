"""What the HTTP interface of {{ cookiecutter.service_slug }} takes and returns."""

from typing import Any

from pydantic import BaseModel, Field


class Status(BaseModel):
    """State of this service, as in its heartbeat."""

    service: str
    status: str = Field(description="online or degraded")
    reasons: list[str] = Field(description="What is wrong")


class CommandRequest(BaseModel):
    """An order to another service."""

    command: str = Field(min_length=1, examples=["refresh"])
    arguments: dict[str, Any] = Field(default_factory=dict, description="Further fields")


class CommandAnswer(BaseModel):
    """What the other service has answered."""

    service: str
    status: str = Field(description="ok or error")
    result: dict[str, Any]
