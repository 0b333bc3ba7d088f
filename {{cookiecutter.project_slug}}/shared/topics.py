"""Topic names and filters, by the rules of MQTT 3.1.1, section 4.7."""

from functools import lru_cache

_MAX_BYTES = 65535
_SHARED = "$share/"


@lru_cache(maxsize=1024)
def validate_topic(topic: str) -> str:
    """Return `topic` if a message may be published on it; raises ValueError."""
    _validate_text(topic)
    if "+" in topic or "#" in topic:
        message = f"a topic holds no wildcard: {topic!r}"
        raise ValueError(message)
    return topic


def validate_filter(topic_filter: str) -> str:
    """Return `topic_filter` if it may be subscribed to; raises ValueError."""
    _validate_text(topic_filter)
    if is_shared(topic_filter):
        _, group, *filters = topic_filter.split("/", 2)
        if not group or not any(filters):
            message = f"a shared subscription is to a filter, $share/GROUP/FILTER: {topic_filter!r}"
            raise ValueError(message)
    *levels, last = topic_filter.split("/")
    if any("#" in level for level in levels) or ("#" in last and last != "#"):
        message = f"'#' stands alone in the last level of a filter: {topic_filter!r}"
        raise ValueError(message)
    if any("+" in level and level != "+" for level in (*levels, last)):
        message = f"'+' stands alone in a level of a filter: {topic_filter!r}"
        raise ValueError(message)
    return topic_filter


def is_shared(topic_filter: str) -> bool:
    """Whether the members of a group share the messages, each of which goes to one of them."""
    return topic_filter.startswith(_SHARED)


def is_exact(topic_filter: str) -> bool:
    """Whether only the topic of the same name matches."""
    return not ("+" in topic_filter or "#" in topic_filter or is_shared(topic_filter))


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a subscription to `topic_filter` receives what is published on `topic`.

    One to `$share/{group}/{filter}`, an extension that most brokers know, is one to the filter.
    """
    if is_shared(topic_filter):
        topic_filter = topic_filter.split("/", 2)[2]
    # Section 4.7.2: a leading wildcard does not reach the broker's own topics.
    if topic.startswith("$") and topic_filter[:1] in {"+", "#"}:
        return False
    wanted, given = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        # The parent level is included: `sport/#` receives `sport`.
        wanted.pop()
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(
        level in {"+", found} for level, found in zip(wanted, given, strict=True)
    )


def _validate_text(text: str) -> None:
    if not text or "\0" in text or len(text.encode()) > _MAX_BYTES:
        message = f"a topic has 1 to {_MAX_BYTES} bytes and no NUL: {text[:80]!r}"
        raise ValueError(message)
