"""Base class of the errors that other systems cause, and a test for cancellations."""

import asyncio


class ExternalError(Exception):
    """Another system failed, and its message says why. The log needs no traceback.

    The errors of all clients in `shared/` derive from it. Derive those of your own clients too.
    """


def is_cancellation(error: BaseException) -> bool:
    """Return whether the current task is cancelled. Otherwise a CancelledError is an error.

    A cancelled future raises CancelledError, too, in a task that awaits it.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
