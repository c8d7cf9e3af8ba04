"""A JSON client for one server: retries, time limits, and errors that name the URL without its credentials."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from rlhf_peft.plugin import SamplerError, UsageError

BACKOFF = 0.5
"""Seconds before the first retry; doubled for each further one."""
TRANSIENT = frozenset({408, 425, 429, 502, 503, 504})
"""Another try may help. Not 500: the server has failed at this very request."""
SHOWN = 300
"""Characters shown of a server's answer."""
LARGEST = 64 * 2**20
"""Bytes of one answer; more is no answer."""


class HttpError(SamplerError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status; 0 where there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def root(url: str) -> str:
    """Where a server's paths begin: the URL without a slash or `/v1` at its end.

    Args:
        url: as people write it.

    Raises:
        ValueError: it is no URL of a server.
    """
    import httpx

    try:
        read = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise ValueError(f"{url} is no URL ({error}). Write it like http://localhost:8000") from None
    if not read.host or not 0 < (read.port or 80) < 2**16 or read.query or read.fragment:
        raise ValueError(f"{url} is not the URL of a server. Write it like http://localhost:8000")
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


class JsonClient:
    """Talks to one server, from several threads if need be.

    Args:
        who: begins every message.
        url: of the server, with or without `/v1`; may hold user and password, which no message shows.
        key_variable: environment variable with an API key; None sends none.
        timeout: seconds for one answer.
        retries: further tries where the server is busy, ill or away.
        connections: most at once.

    Raises:
        UsageError: the variable is not set, or the URL has a password already.
    """

    def __init__(
        self, who: str, url: str, key_variable: str | None, timeout: float, retries: int, connections: int
    ) -> None:
        import httpx

        self._http = httpx
        url = root(url)
        self.who, self.timeout, self.retries = who, timeout, retries
        self.shown = str(httpx.URL(url).copy_with(userinfo=b"")).rstrip("/")
        headers = {}
        if key_variable:
            if httpx.URL(url).userinfo:
                raise UsageError(
                    f"{who}: the url has a user and password, and api_key_env names a key. {self.shown} can be given "
                    "one of them only; leave the other out."
                )
            if not os.environ.get(key_variable):
                raise UsageError(
                    f"{who}: api_key_env: the environment variable {key_variable} is not set. Set it to the key of "
                    f"{self.shown}, or leave api_key_env out."
                )
            headers["Authorization"] = f"Bearer {os.environ[key_variable]}"
        self.hurry = threading.Event()
        """Set: no try is repeated, for nobody waits for the answers any more."""
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=connections),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, *, timeout: float | None = None, retries: int | None = None) -> Any:
        """The JSON answer to a GET; see `post`."""
        return self._ask("GET", path, None, timeout, retries)

    def post(
        self, path: str, payload: Any, *, timeout: float | None = None, retries: int | None = None
    ) -> Any:
        """The JSON answer to a POST, or its text where it is not JSON.

        Args:
            path: below the URL.
            payload: sent as JSON.
            timeout: seconds for the whole answer; None: the client's.
            retries: further tries; None: the client's.

        Raises:
            HttpError: no answer after all tries, or one that says no.
        """
        return self._ask("POST", path, payload, timeout, retries)

    def _ask(self, method: str, path: str, payload: Any, timeout: float | None, retries: int | None) -> Any:
        timeout = timeout or self.timeout
        for attempt in range((self.retries if retries is None else retries) + 1):
            if attempt and self.hurry.wait(BACKOFF * 2 ** (attempt - 1)):
                break
            try:
                response = self._answer(method, path, payload, timeout)
            except self._http.RequestError as error:
                failure = HttpError(self._told(path, f"{type(error).__name__}: {error}", attempt))
                continue
            if response.is_success:
                return _decoded(response)
            said = f"status {response.status_code}: {response.text[:SHOWN].strip()}"
            failure = HttpError(self._told(path, said, attempt), response.status_code)
            if response.status_code not in TRANSIENT:
                break
        raise failure

    def _answer(self, method: str, path: str, payload: Any, timeout: float) -> Any:
        """A response with its body; one that comes in drops has no longer than any other."""
        end, parts, size = time.monotonic() + timeout, [], 0
        limit = self._http.Timeout(timeout, pool=None)
        with self._client.stream(method, path, json=payload, timeout=limit) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > LARGEST:
                    raise self._http.ReadError(f"the answer has more than {LARGEST:,} bytes")
                if time.monotonic() > end:
                    raise self._http.ReadTimeout(f"the answer did not end within {timeout:g} seconds")
            headers = [(k, v) for k, v in response.headers.items() if k != "content-encoding"]
            return self._http.Response(response.status_code, headers=headers, content=b"".join(parts))

    def _told(self, path: str, what: str, attempt: int) -> str:
        tries = f" (try {attempt + 1})" if attempt else ""
        return f"{self.who}: {self.shown}{path}{tries}: {what}"


def _decoded(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text
