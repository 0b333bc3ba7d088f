import pytest
from pydantic import BaseModel, Field, ValidationError

from shared.schemas import LIBRARY_TOPICS, Command, Heartbeat, Message, dump_message


def test_a_command_needs_no_more_than_its_name_and_keeps_its_own_fields() -> None:
    command = Command.model_validate({"command": "refresh", "room": "hall"})
    assert command.model_dump(exclude_none=True) == {"command": "refresh", "room": "hall"}


def test_a_heartbeat_keeps_what_the_service_adds() -> None:
    heartbeat = Heartbeat.model_validate(
        {"status": "online", "uptime_seconds": 1, "memory_mb": 20, "queue": 3}
    )
    assert heartbeat.model_dump()["queue"] == 3


def test_a_timestamp_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        Message.model_validate({"timestamp": "2026-01-01T00:00:00"})


@pytest.mark.parametrize("value", ["nan", float("inf"), "-Infinity"])
def test_what_json_does_not_know_is_refused(value: str | float) -> None:
    class Reading(Message):
        value: float

    with pytest.raises(ValidationError, match="finite"):
        Reading.model_validate({"value": value})


class Place(BaseModel):
    room: str | None


class Measured(Message):
    value: float | None
    limit: float | None = 20.0
    unit: str | None = None
    sender: str = Field(alias="from", default="?")
    place: Place | None = None


@pytest.mark.parametrize(
    "message",
    [
        Measured(value=None, limit=None),
        Measured.model_validate({"value": 1, "from": "attic", "unit": "°C"}),
        Measured.model_validate({"value": 1, "place": {"room": None}}),
    ],
)
def test_what_is_sent_of_a_message_makes_the_same_message(message: Measured) -> None:
    assert Measured.model_validate(dump_message(message)) == message


def test_what_is_none_by_default_is_not_sent() -> None:
    assert dump_message(Measured(value=None)) == {"value": None, "limit": 20.0, "from": "?"}


def test_topics_of_the_library_are_distinct() -> None:
    patterns = [topic.pattern for topic in LIBRARY_TOPICS]
    assert len(set(patterns)) == len(patterns)
