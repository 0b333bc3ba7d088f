"""Names of release 0.2 that still work. Version 2.0 of the template removes this module."""

import functools
import warnings
from collections.abc import Callable


def accept_old_arguments[**P, T](subscribe: Callable[P, T]) -> Callable[P, T]:
    """Let `subscribe` accept `decoding`, with a DeprecationWarning."""

    @functools.wraps(subscribe)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if "decoding" in kwargs:
            message = (
                "subscribe(decoding=...) is deprecated, and version 2.0 of the template removes it."
                " Write payload_format=... instead."
            )
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            kwargs["payload_format"] = kwargs.pop("decoding")
        return subscribe(*args, **kwargs)

    return wrapper
