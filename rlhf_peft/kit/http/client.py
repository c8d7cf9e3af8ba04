"""A JSON client for one server: retries, time limits, and errors that name the URL without its credentials."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import CancelledError
from typing import Any

from ...errors import SamplerError, UsageError
from .exchange import Answer, exchange

BACKOFF = 0.5
"""Seconds before the first retry; doubled for each further one."""
TRANSIENT = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses after which another try may help. 500 is not one: the server failed at this very request."""
SHOWN = 300
"""Characters shown of a server's answer."""
LARGEST = 16 * 2**20
"""Most bytes of one answer, unless the request sets another limit; a longer answer is an error."""
CLOSING = 10.0
"""Seconds that closing the connections may take."""


class HttpError(SamplerError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status; 0 where there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def server_root(url: str) -> str:
    """The root URL of a server: the URL without a slash or `/v1` at its end.

    Args:
        url: as it stands in a recipe.

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
    """A client for one server, which several threads may use.

    Args:
        who: the beginning of every message.
        url: of the server, with or without `/v1`; may contain a user and password, which no message shows.
        key_variable: environment variable with an API key; None: no key is sent.
        timeout: seconds for one answer.
        retries: further tries where the server is busy or cannot be reached.
        connections: most connections at once.

    Raises:
        UsageError: the variable is not set, or the URL has a password already.
    """

    def __init__(
        self, who: str, url: str, key_variable: str | None, timeout: float, retries: int, connections: int
    ) -> None:
        import httpx

        self._http = httpx
        url = server_root(url)
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
        self._hurry = threading.Event()
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, limits=httpx.Limits(max_connections=connections)
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=who, daemon=True)
        self._thread.start()

    def interrupt(self) -> None:
        """Cancel all running requests, and repeat none, until `go_on` is called."""
        self._hurry.set()
        self._loop.call_soon_threadsafe(self._cancel)

    def go_on(self) -> None:
        """Accept requests again after `interrupt`."""
        self._hurry.clear()

    def _cancel(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def close(self) -> None:
        """Cancel running requests, and close the connections."""
        if self._loop.is_closed():
            return
        self.interrupt()
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(CLOSING)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def get(self, path: str, *, timeout: float | None = None, retries: int | None = None) -> Any:
        """The JSON answer to a GET; see `post`."""
        return self._ask("GET", path, None, timeout, retries, LARGEST)

    def post(
        self,
        path: str,
        payload: Any,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        most: int = LARGEST,
    ) -> Any:
        """The JSON answer to a POST, or its text where it is not JSON.

        Args:
            path: below the URL.
            payload: sent as JSON.
            timeout: seconds for the whole answer; None: the client's.
            retries: further tries; None: the client's.
            most: bytes of the answer.

        Raises:
            HttpError: there is no answer after all tries, or an error status.
        """
        return self._ask("POST", path, payload, timeout, retries, most)

    def _ask(
        self, method: str, path: str, payload: Any, timeout: float | None, retries: int | None, most: int
    ) -> Any:
        timeout = timeout or self.timeout
        for attempt in range((self.retries if retries is None else retries) + 1):
            if attempt and self._hurry.wait(BACKOFF * 2 ** (attempt - 1)):
                break
            request = exchange(self._client, method, path, payload, seconds=timeout, most=most)
            running = asyncio.run_coroutine_threadsafe(request, self._loop)
            if self._hurry.is_set():
                running.cancel()
            try:
                answer = running.result()
            except CancelledError:
                raise HttpError(self._error_text(path, "the request was given up", attempt)) from None
            except self._http.HTTPError as error:
                failure = HttpError(self._error_text(path, f"{type(error).__name__}: {error}", attempt))
                continue
            if 200 <= answer.status < 300:
                return _decoded(answer)
            failure = HttpError(self._error_text(path, _refusal(answer), attempt), answer.status)
            if answer.status not in TRANSIENT:
                break
        raise failure

    def _error_text(self, path: str, what: str, attempt: int) -> str:
        tries = f" (try {attempt + 1})" if attempt else ""
        return f"{self.who}: {self.shown}{path}{tries}: {what}"


def _refusal(answer: Answer) -> str:
    """The reason of an answer with an error status or a redirection, as text."""
    if answer.elsewhere is not None:
        place = answer.elsewhere[:SHOWN]
        return f"status {answer.status}, and points to {place}. Set sampler.url to where the server is."
    return f"status {answer.status}: {answer.text[:SHOWN].strip()}"


def _decoded(answer: Answer) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text
