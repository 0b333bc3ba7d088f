"""Retry after temporary errors."""

import inspect
from collections.abc import Awaitable, Callable

import stamina
import structlog
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

type BackoffHook = Callable[[Exception], bool | float]

_logger = structlog.stdlib.get_logger(__name__)


def async_retry[**P, T](
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    exceptions: tuple[type[Exception], ...] | BackoffHook = (),
    *,
    timeout: float | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Retry an async function that is safe to repeat.

    Each retry is logged at WARNING. After the last one the error itself is raised. Cancellation is
    not caught. Raises ValueError without `exceptions`, and TypeError for a function that is not
    async.

    Args:
        max_retries: Number of retries after the first call.
        base_delay: Seconds before the first retry. Each delay is twice as long, plus jitter.
        max_delay: Longest delay in seconds.
        exceptions: Errors to retry, or a hook that returns for an error whether to retry, or
            after how many seconds.
        timeout: Seconds after which no retry starts.
    """
    if not exceptions:
        message = "exceptions must name the errors to retry, because a retry does not fix a bug"
        raise ValueError(message)
    retry = stamina.retry(
        on=exceptions,
        attempts=max_retries + 1,
        timeout=timeout,
        wait_initial=base_delay,
        wait_max=max_delay,
        wait_jitter=min(base_delay, 1.0),
        wait_exp_base=2,
    )

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        if not inspect.iscoroutinefunction(function):
            message = f"{function!r} must be an async function"
            raise TypeError(message)
        return retry(function)

    return decorate


def _log_retry(details: RetryDetails) -> None:
    """Log a retry without the arguments of the call, because they may hold secrets."""
    _logger.warning(
        "retry_scheduled",
        function=details.name,
        retry=details.retry_num,
        wait_seconds=round(details.wait_for, 2),
        error=details.caused_by,
    )


set_on_retry_hooks([_log_retry])
