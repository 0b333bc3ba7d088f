"""Try again after failures that pass by themselves."""

from collections.abc import Awaitable, Callable

import stamina


def async_retry[**P, T](
    max_retries: int = 3,
    base_delay: float = 1.0,
    max_delay: float = 60.0,
    exceptions: tuple[type[Exception], ...] = (),
    *,
    timeout: float | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Decorate an async function that is safe to repeat, with the errors that are worth it.

    Waits `base_delay` seconds, then twice as long each time, `max_delay` at most, each with a
    random part on top; gives up after `max_retries` repetitions, or when `timeout` seconds would
    be exceeded, and raises the last error itself. Each repetition is logged at WARNING.
    Cancellation is not caught. Raises ValueError without `exceptions`.
    """
    if not exceptions:
        message = "name the exceptions to retry: a bug does not go away by repeating it"
        raise ValueError(message)
    return stamina.retry(
        on=exceptions,
        attempts=max_retries + 1,
        timeout=timeout,
        wait_initial=base_delay,
        wait_max=max_delay,
        wait_jitter=min(base_delay, 1.0),
        wait_exp_base=2,
    )
