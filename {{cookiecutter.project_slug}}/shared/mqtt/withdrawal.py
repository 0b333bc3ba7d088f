"""A client of paho whose messages can be withdrawn one by one."""

from typing import Any, override

from paho.mqtt.enums import MessageState, MQTTErrorCode

from shared.mqtt.buffered_client import BufferedClient


class WithdrawingClient(BufferedClient):
    """Client that can withdraw a message, and shows which one the broker rejects.

    MQTT 3.1.1 can only reject a message by closing the connection. After a lost connection, the
    messages that were in flight are sent one at a time. The rejected message is then the first one
    without an acknowledgement.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - those of paho
        super().__init__(*args, **options)
        self._window = self._max_inflight_messages
        self._suspects: set[int] = set()

    def withdraw(self, mid: int) -> None:
        """Remove a message at QoS 1, which paho would send again on every connection.

        A message that was written to the connection already cannot be taken back.
        """
        with self._out_message_mutex:
            message = self._out_messages.pop(mid, None)
            if message is not None and message.state == MessageState.MQTT_MS_WAIT_FOR_PUBACK:
                self._inflight_messages -= 1
            self._clear_suspect(mid)

    @override
    def _messages_reconnect_reset_out(self) -> None:
        with self._out_message_mutex:
            messages = list(self._out_messages.values())
            self._suspects |= {
                message.mid
                for message in messages
                if message.state == MessageState.MQTT_MS_WAIT_FOR_PUBACK
            }
            super()._messages_reconnect_reset_out()
            if self._suspects:
                self._max_inflight_messages = 1
                for message in messages[1:]:
                    message.state = MessageState.MQTT_MS_QUEUED

    @override
    def _do_on_publish(self, mid: int, *details: Any) -> MQTTErrorCode:
        code = super()._do_on_publish(mid, *details)
        self._clear_suspect(mid)
        return code

    def _clear_suspect(self, mid: int) -> None:
        self._suspects.discard(mid)
        if not self._suspects:
            self._max_inflight_messages = self._window
        if self.is_connected():
            self._update_inflight()
