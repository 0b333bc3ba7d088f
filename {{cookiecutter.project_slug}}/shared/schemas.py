"""Payloads of the messages that the library sends and receives.

Put the payloads of a service into its `schemas.py`, with a list `TOPICS` of `Topic` and a list
`COMMANDS` of `CommandSpec`. `make docs` writes `docs/topics.md` and `docs/asyncapi.json` from all
of them.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from shared.tracing import MAX_ID_LENGTH


class Message(BaseModel):
    """Fields of every message. `BaseService.publish` adds the ones that are missing.

    NaN and infinity are rejected, because JSON does not include them.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    timestamp: AwareDatetime | None = Field(default=None, description="Time of sending, UTC")
    service: str | None = Field(default=None, description="Name of the sending service")
    trace_id: str | None = Field(
        default=None, max_length=MAX_ID_LENGTH, description="Id of the work behind the message"
    )
    replay_id: str | None = Field(
        default=None, max_length=MAX_ID_LENGTH, description="Id of the replay of a dead letter"
    )


def describe_problems(error: ValidationError) -> str:
    """Return the fields that are not valid with the reasons, without their values."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'payload'}: {problem['msg']}"
        for problem in problems
    )


def dump_message(message: BaseModel) -> dict[str, Any]:
    """Return a message as JSON data, from which the same model can be validated.

    None is omitted where it is the default. Raises PydanticSerializationError, a ValueError.
    """
    content = message.model_dump(mode="json", by_alias=True)
    for name, field in type(message).model_fields.items():
        key = field.serialization_alias or name
        if field.default is None and content.get(key) is None:
            content.pop(key, None)
    return content


class Availability(Message):
    """Retained status of a service.

    The last will has no timestamp, because it is written when the connection is made.
    """

    status: Literal["online", "offline"]
    reason: str | None = Field(default=None, description="stopped, crashed or connection_lost")


class Heartbeat(Message):
    """Health of a service, sent on an interval. `health_check()` adds fields."""

    model_config = ConfigDict(extra="allow")

    status: str = Field(description="online, or degraded with the reasons")
    uptime_seconds: float = Field(json_schema_extra={"unit": "s"})
    memory_mb: float = Field(description="Resident memory", json_schema_extra={"unit": "MiB"})
    reasons: list[str] = Field(default_factory=list)
    instance: int | None = Field(default=None, description="Number of the replica, see INSTANCE")
    version: str | None = Field(
        default=None, coerce_numbers_to_str=True, description="Commit of the deployment"
    )
    last_failure: str | None = Field(
        default=None, description="Last error of a cycle or reason, even if it is over"
    )
    dead_letters: int = Field(
        default=0, description="Messages whose handler failed since the start"
    )


class Command(Message):
    """Command to one service. Further fields are its arguments."""

    model_config = ConfigDict(extra="allow")

    command: str = Field(max_length=MAX_ID_LENGTH)
    request_id: str | None = Field(
        default=None, max_length=MAX_ID_LENGTH, description="Same id when the command is repeated"
    )
    reply_to: str | None = Field(default=None, description="Topic for the reply")
    expires_at: AwareDatetime | None = Field(
        default=None, description="Time at which the sender stops waiting, UTC"
    )


class CommandReply(Message):
    """Reply to a command. Further fields are its result."""

    model_config = ConfigDict(extra="allow")

    command: str
    status: Literal["ok", "error"]
    request_id: str | None = None
    error: str | None = None


class DeadLetter(Message):
    """Message whose handler failed, with the error.

    A payload of more than 64 KiB is cut. One that exceeds `MQTT_MAX_PAYLOAD_BYTES` is left out.
    """

    original_topic: str
    payload: str = Field(description="Text, or base64 if the bytes are not UTF-8")
    payload_bytes: int | None = Field(default=None, description="Length of a payload that was cut")
    payload_sha256: str | None = Field(
        default=None, description="SHA-256 of a payload that was cut, hexadecimal"
    )
    encoding: Literal["utf-8", "base64"] = "utf-8"
    error_type: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic, and the payload that a service sends on it or receives from it.

    `{prefix}` and `{service}` in `pattern` stand for the topic prefix and the name of a service.
    """

    pattern: str
    payload: type[BaseModel]
    description: str
    direction: Literal["send", "receive"] = "send"
    qos: Literal[0, 1] = 1
    retain: bool = False
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class CommandSpec[A: BaseModel]:
    """One command of a service. Pass it to `on_command`, and list it in `COMMANDS`.

    `arguments` is the model that its handler gets: `Command` for a command without arguments.
    """

    name: str
    arguments: type[A]
    description: str
    reply: type[BaseModel] = CommandReply


LIBRARY_TOPICS = [
    Topic(
        pattern="{prefix}/{service}/availability",
        payload=Availability,
        retain=True,
        description="online after connecting, offline after a stop or a lost connection",
    ),
    Topic(
        pattern="{prefix}/{service}/heartbeat",
        payload=Heartbeat,
        qos=0,
        description="Health, uptime and memory",
    ),
    Topic(
        pattern="{prefix}/coordinator/command/{service}",
        payload=Command,
        direction="receive",
        description="Command to the service",
    ),
    Topic(
        pattern="{prefix}/{service}/response",
        payload=CommandReply,
        description="Reply to a command without `reply_to`",
    ),
    Topic(
        pattern="{prefix}/{service}/response/{client_id}",
        payload=CommandReply,
        direction="receive",
        qos=0,
        description="Reply to a request of this instance of the service",
    ),
    Topic(
        pattern="{prefix}/errors/{service}",
        payload=DeadLetter,
        description="Message whose handler failed in the service",
    ),
]
