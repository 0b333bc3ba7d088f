"""Try again after failures that pass by themselves."""

import inspect
from collections.abc import Awaitable, Callable

import stamina
import structlog
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

type Judge = Callable[[Exception], bool | float]

_logger = structlog.stdlib.get_logger(__name__)


def async_retry[**P, T](
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    exceptions: tuple[type[Exception], ...] | Judge = (),
    *,
    timeout: float | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Decorate an async function that is safe to repeat, with the errors that are worth it.

    `exceptions` may be a function that says of an error whether to try again, or after how many
    seconds. Waits `base_delay` seconds, then twice as long each time, `max_delay` at most, each
    with a random part on top; gives up after `max_retries` repetitions, or when `timeout` seconds
    have passed, and raises the last error itself. Each repetition is logged at WARNING.
    Cancellation is not caught. Raises ValueError without `exceptions`, and TypeError for a
    function that is not async.
    """
    if not exceptions:
        message = "name the exceptions to retry: a bug does not go away by repeating it"
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
            message = f"{function!r} is no async function: its errors come later"
            raise TypeError(message)
        return retry(function)

    return decorate


def _log_retry(details: RetryDetails) -> None:
    """In place of stamina's own line, which holds the arguments of the call: secrets, maybe."""
    _logger.warning(
        "retry_scheduled",
        function=details.name,
        retry=details.retry_num,
        wait_seconds=round(details.wait_for, 2),
        error=details.caused_by,
    )


set_on_retry_hooks([_log_retry])
