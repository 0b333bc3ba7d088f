"""The form of every time in messages, files and log lines, such as `2026-01-31T12:00:00Z`."""

from datetime import UTC, datetime


def format_utc(time: datetime | None = None) -> str:
    """Return a time, by default the present one, in UTC with a `Z` (ISO 8601).

    A time without a time zone is taken as local time.
    """
    return (time or datetime.now(UTC)).astimezone(UTC).isoformat().replace("+00:00", "Z")
