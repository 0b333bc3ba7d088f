"""Base of all clients of HTTP APIs: one way for every request, one family of errors."""

import asyncio
import email.utils
import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

import httpx
from pydantic import SecretStr
from structlog.stdlib import BoundLogger

from shared.redaction import redact_text
from shared.retry import async_retry

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_TRY_LATER = {429, 503}
_MAX_RETRY_AFTER_SECONDS = 60.0
_MAX_SHOWN = 200


class APIError(Exception):
    """Base of all errors of an API client."""


class APIConnectionError(APIError):
    """The server cannot be reached, or the connection broke before the answer was there."""


class APITimeoutError(APIError):
    """No complete answer in time; the server may have done what was asked."""


class APIResponseError(APIError):
    """The answer is not what it should be, JSON for example."""


class APIStatusError(APIError):
    """The server answered with an error status."""

    def __init__(self, message: str, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class AuthenticationError(APIStatusError):
    """The server refuses the token (401 or 403); asking again does not help."""


class NotFoundError(APIStatusError):
    """There is no such thing (404)."""


class APIClient:
    """A client for one base URL, with a bearer token.

    The connection is opened at first use and again after `aclose()`. `timeout_seconds` limits a
    whole request with all its repetitions. Only methods that change nothing are repeated, after
    a failed connection and where the server asks for it with `Retry-After` and there is time.
    """

    def __init__(
        self,
        base_url: str,
        token: str | SecretStr = "",
        *,
        timeout_seconds: float = 30.0,
        max_retries: int = 3,
        logger: BoundLogger,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._token = token if isinstance(token, SecretStr) else SecretStr(token)
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._logger = logger
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; a second call does nothing."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def get(self, path: str, *, params: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401
        """GET and return the decoded JSON; raises APIError."""
        return await self.request("GET", path, params=params)

    async def post(self, path: str, json: object = None) -> Any:  # noqa: ANN401 - any JSON
        """POST `json` and return the decoded JSON; raises APIError. Never repeated."""
        return await self.request("POST", path, json=json)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
    ) -> Any:  # noqa: ANN401 - any JSON
        """Send a request and return the decoded JSON, None for an empty answer; raises APIError."""
        response = await self.send(method, path, params=params, json=json)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            message = f"{method} {path}: the answer is no JSON: {_shown(response)}"
            raise APIResponseError(message) from error

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
    ) -> httpx.Response:
        """Send a request and return the successful answer, read completely; raises APIError."""
        try:
            async with asyncio.timeout(self._timeout_seconds) as limit:
                if method not in _SAFE_METHODS:
                    return await self._send_once(method, path, params=params, json=json)
                repeated = async_retry(
                    self._max_retries,
                    base_delay=0.5,
                    max_delay=10.0,
                    exceptions=functools.partial(_worth_repeating, limit=limit),
                )(self._send_once)
                return await repeated(method, path, params=params, json=json)
        except TimeoutError as error:
            message = f"{method} {path}: no answer in {self._timeout_seconds:g} s"
            raise APITimeoutError(message) from error

    async def _send_once(
        self, method: str, path: str, *, params: Mapping[str, str] | None, json: object
    ) -> httpx.Response:
        try:
            response = await self._http().request(method, path, params=params, json=json)
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            message = f"{method} {path}: {type(error).__name__}"
            raise APITimeoutError(message) from error
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            # It may quote a header that it refuses, with the token in it.
            message = f"{method} {path}: cannot be sent: {redact_text(str(error))}"
            raise APIError(message) from error
        except httpx.TransportError as error:
            message = f"{method} {path}: {redact_text(str(error)) or type(error).__name__}"
            raise APIConnectionError(message) from error
        except httpx.HTTPError as error:
            message = f"{method} {path}: {error}"
            raise APIResponseError(message) from error
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            message = f"{method} {path}: address or token cannot be sent: {type(error).__name__}"
            raise APIError(message) from error
        if not response.is_success:
            raise _status_error(method, path, response)
        return response

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            token = self._token.get_secret_value()
            self._client = httpx.AsyncClient(
                base_url=self.base_url,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                # For each phase; the limit of the whole request stands in `send`.
                timeout=self._timeout_seconds,
                transport=self._transport,
            )
        return self._client


def _status_error(method: str, path: str, response: httpx.Response) -> APIStatusError:
    status = response.status_code
    kind = {401: AuthenticationError, 403: AuthenticationError, 404: NotFoundError}.get(
        status, APIStatusError
    )
    message = f"{method} {path}: status {status}: {_shown(response)}"
    return kind(message, status, _retry_after_seconds(response))


def _worth_repeating(error: Exception, limit: asyncio.Timeout) -> bool | float:
    """Whether to send again, or after how many seconds."""
    if not isinstance(error, APIStatusError):
        return isinstance(error, APIConnectionError)
    wait_seconds, ends = error.retry_after_seconds, limit.when()
    if error.status not in _TRY_LATER or wait_seconds is None or ends is None:
        return False
    # Else what the server says would become a timeout of our own.
    is_in_time = asyncio.get_running_loop().time() + wait_seconds < ends
    return wait_seconds if is_in_time else False


def _shown(response: httpx.Response) -> str:
    return " ".join(response.text[:_MAX_SHOWN].split())


def _retry_after_seconds(response: httpx.Response) -> float | None:
    """`Retry-After` in seconds or as a date (RFC 9110, section 10.2.3), capped."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        seconds = float(value)
    else:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS)
