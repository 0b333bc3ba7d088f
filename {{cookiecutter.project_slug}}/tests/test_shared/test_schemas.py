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


def test_topics_of_the_library_are_distinct() -> None:
    patterns = [topic.pattern for topic in LIBRARY_TOPICS]
    assert len(set(patterns)) == len(patterns)
