"""Ports for programs that listen later."""

from __future__ import annotations

import socket
from contextlib import suppress

# The kernel hands out ports from 32768 on, so no connection takes one of these meanwhile.
PORTS = range(20_000, 32_768)
_reservations: list[socket.socket] = []


def free_port() -> int:
    """Return a port that nothing uses, and that no test gets again as long as this process runs."""
    for port in PORTS:
        # The same port of UDP tells the other processes.
        reservation = socket.socket(type=socket.SOCK_DGRAM)
        with suppress(OSError):
            reservation.bind(("127.0.0.1", port))
            with socket.create_server(("", port)):
                _reservations.append(reservation)
                return port
        reservation.close()
    raise AssertionError("no port is free")


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
