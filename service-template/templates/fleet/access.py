"""Access to the API: the password, the sessions of browsers, and the headers of responses."""

import hashlib
import hmac
import time

from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "fleet_session"
# A page of another site cannot set it: the browser would ask this service first.
HEADER = "X-Fleet"
SESSION_SECONDS = 7 * 86400
_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Access:
    """Checks passwords and sessions. Allows everything if no password is set."""

    def __init__(self, password: SecretStr, key: bytes) -> None:
        self._password = password.get_secret_value().encode()
        # A new password ends all sessions.
        self._key = hmac.digest(key, self._password, hashlib.sha256)

    @property
    def has_password(self) -> bool:
        return bool(self._password)

    def is_password(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._password)

    def new_session(self) -> str:
        expires = str(int(time.time()) + SESSION_SECONDS)
        return f"{expires}.{self._sign(expires)}"

    def allows(self, session: str, password: str | None) -> bool:
        if not self.has_password or (password is not None and self.is_password(password)):
            return True
        expires, _, signature = session.partition(".")
        is_signed = hmac.compare_digest(signature.encode(), self._sign(expires).encode())
        return is_signed and int(expires) > time.time()

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class SecurityHeaders:
    """Add headers that keep the page to itself, and responses out of caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_secured)
