"""Base class of all clients of HTTP APIs, with one family of errors."""

import asyncio
import email.utils
import functools
import os
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

import httpx
from pydantic import SecretStr
from structlog.stdlib import BoundLogger

from shared.errors import ExternalError
from shared.redaction import redact_text
from shared.retry import async_retry

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_RETRY_STATUSES = {429, 503}
_MAX_RETRY_AFTER_SECONDS = 60.0
_MAX_EXCERPT = 200
_PROXY_VARIABLES = {"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}


class APIError(ExternalError):
    """Base class of all errors of an API client."""


class APIConnectionError(APIError):
    """The server cannot be reached, or the connection was lost before the response."""


class APITimeoutError(APIError):
    """No complete response in time. The server may have processed the request."""


class APIResponseError(APIError):
    """The response is not valid, for example not JSON."""


class APIStatusError(APIError):
    """The response has an error status."""

    def __init__(self, message: str, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class AuthenticationError(APIStatusError):
    """The server rejects the token (401 or 403). A retry does not help."""


class NotFoundError(APIStatusError):
    """The resource does not exist (404)."""


class APIClient:
    """Client for one base URL, with a bearer token.

    It connects at first use, and again after `aclose()`. `timeout_seconds` limits a request with
    all its retries. Only safe methods are retried: after a failed connection, and after a status
    with `Retry-After` if that is within the timeout.
    """

    def __init__(
        self,
        base_url: str,
        token: str | SecretStr = "",
        *,
        timeout_seconds: float = 30.0,
        max_retries: int = 3,
        logger: BoundLogger,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._token = token if isinstance(token, SecretStr) else SecretStr(token)
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._logger = logger
        self._tls = tls
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. A second call does nothing."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def get(self, path: str, *, params: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401
        """Send a GET request and return the decoded JSON. Raises APIError."""
        return await self.request("GET", path, params=params)

    async def post(self, path: str, json: object = None) -> Any:  # noqa: ANN401 - any JSON
        """Send a POST request and return the decoded JSON, without retries. Raises APIError."""
        return await self.request("POST", path, json=json)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
    ) -> Any:  # noqa: ANN401 - any JSON
        """Send a request and return the decoded JSON, or None without content. Raises APIError."""
        response = await self.send(method, path, params=params, json=json)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            message = f"{self._describe(method, path)}: the response is not valid JSON: "
            message += _excerpt(response)
            raise APIResponseError(message) from error

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
    ) -> httpx.Response:
        """Send a request and return the successful response. Raises APIError."""
        try:
            async with asyncio.timeout(self._timeout_seconds) as limit:
                if method not in _SAFE_METHODS:
                    return await self._send_once(method, path, params=params, json=json)
                send_with_retries = async_retry(
                    self._max_retries,
                    base_delay=0.5,
                    max_delay=10.0,
                    exceptions=functools.partial(_retry_delay, limit=limit),
                )(self._send_once)
                return await send_with_retries(method, path, params=params, json=json)
        except TimeoutError as error:
            message = f"{self._describe(method, path)}: no response in {self._timeout_seconds:g} s"
            raise APITimeoutError(message) from error

    async def _send_once(
        self, method: str, path: str, *, params: Mapping[str, str] | None, json: object
    ) -> httpx.Response:
        target = self._describe(method, path)
        try:
            request = self._request(method, path, params=params, json=json)
            response = await self._http().send(request)
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            message = f"{target}: {type(error).__name__}"
            raise APITimeoutError(message) from error
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            # The error may quote an invalid header, which holds the token.
            message = f"{target}: cannot be sent: {redact_text(str(error))}"
            raise APIError(message) from error
        except httpx.TransportError as error:
            message = f"{target}: {redact_text(str(error)) or type(error).__name__}"
            raise APIConnectionError(message) from error
        except httpx.HTTPError as error:
            message = f"{target}: {error}"
            raise APIResponseError(message) from error
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            message = f"{target}: URL or token cannot be sent: {type(error).__name__}"
            raise APIError(message) from error
        if not response.is_success:
            raise _status_error(target, response)
        return response

    def _request(
        self, method: str, path: str, *, params: Mapping[str, str] | None, json: object
    ) -> httpx.Request:
        client = self._http()
        try:
            return client.build_request(method, path, params=params, json=json)
        except (TypeError, ValueError, RecursionError) as error:
            # NaN, a date or another object that JSON does not include.
            message = f"{self._describe(method, path)}: cannot be sent as JSON: {error}"
            raise APIError(message) from error

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            token = self._token.get_secret_value()
            url = httpx.URL(self.base_url)
            headers = httpx.Headers({"Authorization": f"Bearer {token}"} if token else {})
            verify = True if self._transport else self._tls_context()
            try:
                self._client = httpx.AsyncClient(
                    base_url=url,
                    headers=headers,
                    # The timeout of httpx applies to each phase. `send` limits the whole request.
                    timeout=self._timeout_seconds,
                    verify=verify,
                    transport=self._transport,
                )
            except (ImportError, ValueError, httpx.InvalidURL) as error:
                message = redact_text(f"cannot use {proxy_variables()}: {error}")
                raise APIError(message) from error
        return self._client

    def _tls_context(self) -> ssl.SSLContext:
        """Return the trusted certificates: those of the CA file, or those that httpx trusts."""
        try:
            return self._tls or httpx.create_ssl_context()
        except OSError as error:
            message = f"SSL_CERT_FILE: cannot read {os.environ.get('SSL_CERT_FILE')}: {error}"
            raise APIError(message) from error

    def _describe(self, method: str, path: str) -> str:
        url = path if "://" in path else f"{self.base_url}/{path.removeprefix('/')}"
        return redact_text(f"{method} {url}")


def proxy_variables() -> str:
    """Return the environment variables that choose a proxy, with their values."""
    found = {name: value for name, value in os.environ.items() if name.upper() in _PROXY_VARIABLES}
    return ", ".join(f"{name}={value}" for name, value in sorted(found.items()))


def _status_error(target: str, response: httpx.Response) -> APIStatusError:
    status = response.status_code
    kind = {401: AuthenticationError, 403: AuthenticationError, 404: NotFoundError}.get(
        status, APIStatusError
    )
    if response.next_request is None:
        detail = _excerpt(response)
    else:
        location = redact_text(str(response.next_request.url))
        detail = f"redirect to {location}. Use that address in the URL of the client"
    message = f"{target}: status {status}: {detail}"
    return kind(message, status, _retry_after_seconds(response))


def _retry_delay(error: Exception, limit: asyncio.Timeout) -> bool | float:
    """Return whether to retry, or after how many seconds."""
    if not isinstance(error, APIStatusError):
        return isinstance(error, APIConnectionError)
    wait_seconds, ends = error.retry_after_seconds, limit.when()
    if error.status not in _RETRY_STATUSES or wait_seconds is None or ends is None:
        return False
    # A longer wait would end as a timeout, which hides the status of the server.
    is_in_time = asyncio.get_running_loop().time() + wait_seconds < ends
    return wait_seconds if is_in_time else False


def _excerpt(response: httpx.Response) -> str:
    return " ".join(response.text[:_MAX_EXCERPT].split())


def _retry_after_seconds(response: httpx.Response) -> float | None:
    """Return `Retry-After`, which is a number or a date (RFC 9110, 10.2.3), up to a limit."""
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
