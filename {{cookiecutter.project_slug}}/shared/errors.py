"""Base class of the errors that other systems cause, and a test for cancellations."""

import asyncio


class ExternalError(Exception):
    """Another system failed, and its message says why. The log needs no traceback.

    The errors of all clients in `shared/` derive from it. Derive those of your own clients too.
    """


def is_cancellation(error: BaseException) -> bool:
    """Return whether `error` is the cancellation of the current task.

    A cancelled future raises CancelledError as well, in the task that awaits it.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
