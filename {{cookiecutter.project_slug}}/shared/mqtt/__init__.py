"""The MQTT client of a service.

`MQTTClient` (client) publishes, subscribes and requests. It sends and receives through one
`Connection` (connection, errors) with a client id from a `Session` (session). A `Dispatcher`
(dispatcher, topics, payload, dedup) passes what arrives to the handlers.
"""

from shared.mqtt.client import MQTTClient
from shared.mqtt.dispatcher import Handler, QoS
from shared.mqtt.errors import (
    CommandError,
    MQTTError,
    NotConnectedError,
    PayloadError,
    PublishRejectedError,
    PublishTimeoutError,
    QueueFullError,
    RequestTimeoutError,
    ServiceOfflineError,
)
from shared.mqtt.payload import Payload, PayloadFormat, encode
from shared.mqtt.session import Session

__all__ = [
    "CommandError",
    "Handler",
    "MQTTClient",
    "MQTTError",
    "NotConnectedError",
    "Payload",
    "PayloadError",
    "PayloadFormat",
    "PublishRejectedError",
    "PublishTimeoutError",
    "QoS",
    "QueueFullError",
    "RequestTimeoutError",
    "ServiceOfflineError",
    "Session",
    "encode",
]
