"""What can go wrong with MQTT, as one hierarchy."""


class MQTTError(Exception):
    """Base of all errors of the MQTT client."""


class NotConnectedError(MQTTError):
    """There is no connection, and the message is not one that waits for it."""


class PublishTimeoutError(MQTTError):
    """The broker did not acknowledge in time; the message may still be delivered."""


class QueueFullError(MQTTError):
    """Too many messages wait for the broker's acknowledgement."""


class RequestTimeoutError(MQTTError):
    """Nobody answered a request in time."""


class PayloadError(MQTTError):
    """A payload is no JSON, or cannot be written as JSON."""
