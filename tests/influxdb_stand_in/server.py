"""Answers /ping, and queries with the token of the first start."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = Path(sys.argv[1]).read_text()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(204 if self.path == "/ping" else 404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        is_allowed = TOKEN and self.headers["Authorization"] == f"Token {TOKEN}"
        self.answer(200 if is_allowed else 401)

    def answer(self, status: int) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()


ThreadingHTTPServer(("", 8086), Handler).serve_forever()
