"""Names of release 0.2 that still work. The next release removes this module."""

import functools
import warnings
from collections.abc import Callable


def accept_old_arguments[**P, T](subscribe: Callable[P, T]) -> Callable[P, T]:
    """Let `subscribe` accept `decoding` and `retained`, with a DeprecationWarning."""

    @functools.wraps(subscribe)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if "decoding" in kwargs:
            _warn("subscribe(decoding=...)", "payload_format=...")
            kwargs["payload_format"] = kwargs.pop("decoding")
        if "retained" in kwargs:
            _warn("subscribe(retained=False)", "skip_retained=True")
            kwargs["skip_retained"] = not kwargs.pop("retained")
        return subscribe(*args, **kwargs)

    return wrapper


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is deprecated. Write {new} instead.", DeprecationWarning, stacklevel=3)
