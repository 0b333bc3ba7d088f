"""A client of paho whose messages can be withdrawn one by one."""

from typing import Any, override

from paho.mqtt.enums import ConnackCode, MessageState, MQTTErrorCode

from shared.mqtt.buffered_client import BufferedClient


class WithdrawingClient(BufferedClient):
    """Client that can withdraw a message, and shows which one the broker rejects.

    MQTT 3.1.1 can only reject a message by closing the connection. After a lost connection, the
    messages that were in flight are sent one at a time. The rejected message is then the first one
    without an acknowledgement. A message that is published during the connect follows in order.
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
    def _send_publish(self, *message: Any, **options: Any) -> MQTTErrorCode:
        # paho has a socket before it sends CONNECT. A broker closes a connection on which a message
        # comes first.
        if not self.is_connected():
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        return super()._send_publish(*message, **options)

    @override
    def _handle_connack(self) -> MQTTErrorCode:
        # The second byte is the return code (section 3.2.2.3).
        if self._in_packet["packet"][1:2] != bytes([ConnackCode.CONNACK_ACCEPTED]):
            return super()._handle_connack()
        with self._out_message_mutex:
            # paho would keep back a message that was published during the connect and follows a
            # queued one.
            self._messages_reconnect_reset_out()
            return super()._handle_connack()

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
