"""Messages of {{ cookiecutter.service_slug }}, and requests and responses of its API."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from shared.schemas import DeadLetter, Message, Topic

TOPICS = [
    Topic(
        pattern="{prefix}/#",
        payload=Message,
        direction="receive",
        qos=0,
        description="All messages, for the page",
    ),
    Topic(
        pattern="{prefix}/errors/+",
        payload=DeadLetter,
        direction="receive",
        description="Dead letters, kept until they are replayed or discarded",
    ),
]
State = Literal["online", "degraded", "offline", "stale"]
# Pydantic rejects a lone surrogate in a string only if the string has a constraint.
Text = Annotated[str, Field(max_length=100_000)]


class ServiceRow(BaseModel):
    """State of one service."""

    name: str
    state: State
    reasons: list[str] = []
    since: datetime = Field(description="Time of the last change of the state")
    last_seen: datetime | None = None
    uptime_seconds: float | None = None
    memory_mb: float | None = None
    version: str | None = Field(default=None, description="Commit of the deployment")
    history: list[tuple[float, State]] = Field(default=[], description="Memory, state by heartbeat")


class Services(BaseModel):
    connected: bool = Field(description="Whether the broker can be reached")
    services: list[ServiceRow]


class Update(Services):
    """All services at first, then those that changed."""

    is_full: bool
    now: datetime = Field(description="Time of this machine, to which `last_seen` is compared")
    dead_letters: int
    newest: int = Field(description="Id of the newest dead letter, which never shrinks")


class Summary(BaseModel):
    """Numbers for a dashboard."""

    status: Literal["ok", "problem"]
    connected: bool
    services: int
    online: int
    degraded: int
    offline: int
    stale: int
    dead_letters: int
    problems: list[str]


class SeenMessage(BaseModel):
    topic: str
    payload: str = Field(description="Text, cut after some kilobytes")
    size: int = Field(description="Bytes of the whole payload")
    trace_id: str | None
    received_at: datetime


class TopicInfo(BaseModel):
    """One topic of a service, with the last message on each topic that matches it."""

    pattern: str
    direction: Literal["send", "receive"]
    description: str
    messages: list[SeenMessage]


class CommandInfo(BaseModel):
    name: str
    description: str
    arguments: dict[str, Any] = Field(description="JSON schema of an object")


class ServiceDetail(BaseModel):
    service: ServiceRow
    topics: list[TopicInfo]
    commands: list[CommandInfo]


class CommandResponse(BaseModel):
    reply: dict[str, Any]


class KeptLetter(DeadLetter):
    id: int
    kind: str = Field(description="Service, error and topic")
    received_at: datetime
    rejection: str | None = Field(default=None, description="Why it cannot be replayed")


class Kind(BaseModel):
    kind: str
    count: int


class DeadLetters(BaseModel):
    total: int
    kinds: list[Kind]
    letters: list[KeptLetter] = Field(description="Newest first")


class KindRequest(BaseModel):
    kind: Text


class Outcome(BaseModel):
    done: int = Field(description="Letters that were replayed or discarded")
    rejected: list[str] = Field(default=[], description="Reasons why letters were not replayed")
    remaining: int = Field(description="Letters that are still kept")


class Login(BaseModel):
    password: Text


class Session(BaseModel):
    has_password: bool
