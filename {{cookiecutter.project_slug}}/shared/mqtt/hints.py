"""Likely causes of a failed connection, for the log and for the diagnosis."""

_CREDENTIALS = "set MQTT_USERNAME and MQTT_PASSWORD to those of the broker"
# The keys are the names that paho has for the return codes 1, 2 and 3 of CONNACK.
_REFUSALS = {
    "Unsupported protocol version": "use a broker that accepts MQTT 3.1.1",
    "Client identifier not valid": "set MQTT_CLIENT_ID to an id that the broker accepts",
    "Server unavailable": "read the log of the broker, which may be starting or at a limit",
}


def hint_for_refusal(reason: str) -> str:
    """Return the fix for a connection that the broker has rejected with this reason."""
    return _REFUSALS.get(reason, _CREDENTIALS)


def hint_for_silence(*, tls: bool) -> str:
    """Return the likely causes when there is a TCP connection but no CONNACK."""
    cause = (
        "the broker wants a client certificate (MQTT_TLS_CERT_FILE)"
        if tls
        else "the port expects TLS (MQTT_TLS)"
    )
    return (
        f"check whether {cause}, the port belongs to another server such as a web server, or"
        " Mosquitto accepts local clients only (add `listener 1883` to its configuration)"
    )
