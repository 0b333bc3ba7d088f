"""The part of the Debug Adapter Protocol that an editor needs to stop at a line."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 90


class DebugAdapter:
    """A connection to debugpy."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = socket.create_connection((host, port), timeout=TIMEOUT_SECONDS)
        self._stream = self._connection.makefile("rb")
        self._sent = 0

    def __enter__(self) -> DebugAdapter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._connection.close()

    def stop_at(self, path: Path, line: int, entry: dict[str, Any], *, seconds: float = 0) -> None:
        """Attach with an entry of launch.json, stop at the line once, and continue after a time."""
        self.ask("initialize", adapterID="debugpy")
        self._request("attach", **entry)
        self._event("initialized")
        source = {"path": str(path)}
        (point,) = self.ask("setBreakpoints", source=source, breakpoints=[{"line": line}])[
            "breakpoints"
        ]
        assert point["verified"]
        self.ask("configurationDone")
        thread = self._event("stopped")["threadId"]
        frame = self.ask("stackTrace", threadId=thread)["stackFrames"][0]
        assert (frame["source"]["path"], frame["line"]) == (str(path), line)
        self.ask("setBreakpoints", source=source, breakpoints=[])
        time.sleep(seconds)
        self.ask("continue", threadId=thread)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        number = self._request(command, **arguments)
        response = self._wait_for(lambda message: message.get("request_seq") == number)
        assert response["success"], response
        body: dict[str, Any] = response.get("body", {})
        return body

    def _request(self, command: str, **arguments: Any) -> int:
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command}
        body = json.dumps({**message, "arguments": arguments}).encode()
        self._connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return self._sent

    def _event(self, name: str) -> dict[str, Any]:
        body: dict[str, Any] = self._wait_for(lambda message: message.get("event") == name).get(
            "body", {}
        )
        return body

    def _wait_for(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the next message that fits, and drop the messages before it."""
        while True:
            length = 0
            while header := self._stream.readline().strip():
                length = int(header.removeprefix(b"Content-Length: "))
            assert length, "the debugger has closed the connection"
            message: dict[str, Any] = json.loads(self._stream.read(length))
            if condition(message):
                return message
