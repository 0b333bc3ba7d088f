import pytest
from pydantic import ValidationError

from shared.schemas import LIBRARY_TOPICS, Command, Heartbeat, Message


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


def test_topics_of_the_library_are_distinct() -> None:
    patterns = [topic.pattern for topic in LIBRARY_TOPICS]
    assert len(set(patterns)) == len(patterns)
