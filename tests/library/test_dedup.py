import time

import pytest

from shared.mqtt.dedup import Recent, RecentIds, message_id


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_id_is_known_the_second_time() -> None:
    recent = RecentIds()
    assert [recent.seen("a"), recent.seen("b"), recent.seen("a")] == [False, False, True]


def test_the_number_of_ids_is_bounded_and_the_oldest_goes_first() -> None:
    recent = RecentIds(max_count=3)
    for number in range(100):
        recent.seen(number)
    assert len(recent) == 3
    assert [recent.seen(99), recent.seen(97), recent.seen(96)] == [True, True, False]


def test_an_id_is_forgotten_by_age() -> None:
    clock = Clock()
    recent = RecentIds(max_age_seconds=10, clock=clock)
    recent.seen("a")
    clock.now = 10.0
    assert recent.seen("a")
    clock.now = 10.5
    assert not recent.seen("a")
    assert len(recent) == 1


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", iter([4e9, 1e9, 4e9, 0.0]).__next__)
    recent = RecentIds()
    assert not recent.seen("a")
    assert recent.seen("a")


def test_a_message_is_known_by_its_request_else_by_trace_and_content() -> None:
    assert message_id("r", "t", b"1") == message_id("r", "other", b"2") == "r"
    assert message_id(None, "t", b"1") == message_id("", "t", b"1")
    ids = {message_id(None, "t", b"1"), message_id(None, "t", b"2"), message_id(None, "u", b"1")}
    assert len(ids) == 3
    assert message_id(None, None, b"1") is None


def test_values_are_kept_and_forgotten_with_their_ids() -> None:
    recent: Recent[str] = Recent(max_count=2)
    for known in ("a", "b", "c"):
        recent.add(known, known.upper())
    assert [recent.get("a"), recent.get("b"), recent.get("c")] == [None, "B", "C"]
