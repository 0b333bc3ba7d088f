"""Base class of the errors that other systems cause."""


class ExternalError(Exception):
    """Another system failed, and its message says why. The log needs no traceback.

    The errors of all clients in `shared/` derive from it. Derive those of your own clients too.
    """
