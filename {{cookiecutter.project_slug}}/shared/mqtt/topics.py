"""Topic names and topic filters (MQTT 3.1.1, section 4.7)."""

from functools import lru_cache

_MAX_BYTES = 65535
_SHARED = "$share/"


@lru_cache(maxsize=1024)
def validate_topic(topic: str) -> str:
    """Return `topic` if messages may be published on it. Raises ValueError."""
    _validate_text(topic)
    if "+" in topic or "#" in topic:
        message = f"a topic must not contain wildcards: {topic!r}"
        raise ValueError(message)
    return topic


def validate_filter(topic_filter: str) -> str:
    """Return `topic_filter` if it is a valid subscription. Raises ValueError."""
    _validate_text(topic_filter)
    if is_shared(topic_filter):
        _, group, *filters = topic_filter.split("/", 2)
        if not group or not any(filters):
            message = f"a shared subscription must be $share/GROUP/FILTER: {topic_filter!r}"
            raise ValueError(message)
    *levels, last = topic_filter.split("/")
    if any("#" in level for level in levels) or ("#" in last and last != "#"):
        message = f"'#' must be the whole last level of a topic filter: {topic_filter!r}"
        raise ValueError(message)
    if any("+" in level and level != "+" for level in (*levels, last)):
        message = f"'+' must be a whole level of a topic filter: {topic_filter!r}"
        raise ValueError(message)
    return topic_filter


def is_shared(topic_filter: str) -> bool:
    """Return whether this is a shared subscription, whose group splits the messages."""
    return topic_filter.startswith(_SHARED)


def is_exact(topic_filter: str) -> bool:
    """Return whether only the topic of the same name matches."""
    return not ("+" in topic_filter or "#" in topic_filter or is_shared(topic_filter))


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a subscription to `topic_filter` receives messages on `topic`.

    `$share/{group}/{filter}`, an extension that most brokers support, matches as `{filter}`.
    """
    if is_shared(topic_filter):
        topic_filter = topic_filter.split("/", 2)[2]
    # Section 4.7.2: a leading wildcard does not match the broker's own topics.
    if topic.startswith("$") and topic_filter[:1] in {"+", "#"}:
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        # `#` includes the parent level: `sport/#` matches `sport`.
        wanted.pop()
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(
        pattern in {"+", level} for pattern, level in zip(wanted, levels, strict=True)
    )


def _validate_text(text: str) -> None:
    if not text or "\0" in text or len(text.encode()) > _MAX_BYTES:
        message = f"a topic must have 1 to {_MAX_BYTES} bytes and no NUL: {text[:80]!r}"
        raise ValueError(message)
