"""A JSON client for one server: retries, time limits, and errors that name the URL without its credentials."""

from __future__ import annotations

import os
import time
from typing import Any

from rlhf_peft.plugin import SamplerError, UsageError

BACKOFF = 0.5
"""Seconds before the first retry; doubled for each further one."""
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
SHOWN = 300
"""Characters shown of a server's answer."""


class HttpError(SamplerError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status; 0 where there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class JsonClient:
    """Talks to one server, from several threads if need be.

    Args:
        who: begins every message.
        url: of the server; may hold user and password, which no message shows.
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
        self.who, self.retries = who, retries
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
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=connections),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON answer to a GET."""
        return self._ask("GET", path, None)

    def post(self, path: str, payload: Any) -> Any:
        """The JSON answer to a POST, or its text where it is not JSON.

        Raises:
            HttpError: no answer after all tries, or one that says no.
        """
        return self._ask("POST", path, payload)

    def _ask(self, method: str, path: str, payload: Any) -> Any:
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(BACKOFF * 2 ** (attempt - 1))
            try:
                response = self._client.request(method, path, json=payload)
            except self._http.TransportError as error:
                failure = HttpError(self._told(path, f"{type(error).__name__}: {error}", attempt))
                continue
            if response.is_success:
                return _decoded(response)
            said = f"status {response.status_code}: {response.text[:SHOWN].strip()}"
            failure = HttpError(self._told(path, said, attempt), response.status_code)
            if response.status_code not in TRANSIENT:
                break
        raise failure

    def _told(self, path: str, what: str, attempt: int) -> str:
        tries = f" (try {attempt + 1})" if attempt else ""
        return f"{self.who}: {self.shown}{path}{tries}: {what}"


def _decoded(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text
