"""Topic names and filters, with the examples of MQTT 3.1.1, section 4.7."""

import pytest

from shared.mqtt.topics import matches, validate_filter, validate_topic


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        ("sport/tennis/player1", "sport/tennis/player1"),
        ("sport/tennis/player1/#", "sport/tennis/player1"),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
        ("sport/#", "sport"),
        ("#", "a/b/c"),
        ("sport/tennis/+", "sport/tennis/player1"),
        ("sport/+", "sport/"),
        ("+/+", "/finance"),
        ("/+", "/finance"),
        ("+/tennis/#", "sport/tennis"),
        ("$SYS/#", "$SYS/broker/load"),
        ("$SYS/monitor/+", "$SYS/monitor/Clients"),
        ("größe/+", "größe/日本"),
        ("$share/group/sport/+", "sport/tennis"),
        ("$share/group//finance", "/finance"),
    ],
)
def test_a_filter_matches(topic_filter: str, topic: str) -> None:
    validate_filter(topic_filter)
    validate_topic(topic)
    assert matches(topic_filter, topic)


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        ("sport/tennis/+", "sport/tennis/player1/ranking"),
        ("sport/+", "sport"),
        ("+", "/finance"),
        ("sport", "Sport"),
        ("sport", "sport/"),
        ("sport/#", "sports"),
        ("#", "$SYS/broker/load"),
        ("+/monitor/Clients", "$SYS/monitor/Clients"),
    ],
)
def test_a_filter_does_not_match(topic_filter: str, topic: str) -> None:
    assert not matches(topic_filter, topic)


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#", "nul\0", "x" * 65536, "half \ud800"])
def test_no_topic(topic: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the encoding's own error is one as well
        validate_topic(topic)


@pytest.mark.parametrize(
    "topic_filter",
    ["", "a/#/b", "a#", "a/b+", "+a", "##", "$share/group", "$share//a", "nul\0"],
)
def test_no_filter(topic_filter: str) -> None:
    with pytest.raises(ValueError, match=r"filter|bytes|subscription"):
        validate_filter(topic_filter)
