"""Errors of the MQTT client."""

from shared.errors import ExternalError


class MQTTError(ExternalError):
    """Base class of all errors of the MQTT client."""


class NotConnectedError(MQTTError):
    """The client is not connected, and the message does not wait for a connection."""


class PublishTimeoutError(MQTTError):
    """The broker did not acknowledge the message in time."""


class PublishRejectedError(MQTTError):
    """The broker closes the connection for this message: its size, its topic, or a permission."""


class QueueFullError(MQTTError):
    """Too many messages wait for an acknowledgement from the broker."""


class RequestTimeoutError(MQTTError):
    """No reply to a request arrived in time."""


class PayloadError(MQTTError):
    """A payload is not valid JSON, or cannot be encoded as JSON."""


class FatalMessageError(MQTTError):
    """The process has ended repeatedly while it handled this message, so it is not handled."""


class ServiceOfflineError(RequestTimeoutError):
    """The target of a command is offline, so the command was not sent."""


class CommandError(MQTTError):
    """The target of a command rejected it, or failed to run it."""
