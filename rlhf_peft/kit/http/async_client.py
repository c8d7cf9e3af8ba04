"""An HTTP client for rewards: many concurrent requests, retries, and no secrets in its messages."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ...errors import RewardError, UsageError
from .exchange import exchange

BACKOFF_LIMIT = 30.0
LARGEST = 16 * 2**20
"""Most bytes of one answer; a longer one is an error."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


def plain_url(url: str) -> str:
    """The URL unchanged, if it is one that may be written into a recipe.

    Raises:
        ValueError: it is no http URL, or it carries a user or password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a URL such as http://localhost:8000/score")
    if parts.username or parts.password:
        raise ValueError(
            "a URL with a user or password would end up in the run folder; name an environment variable"
        )
    return url


def environment_secret(variable: str, key: str) -> str:
    """The value of an environment variable.

    Args:
        variable: its name.
        key: the option that named it, for the message.

    Raises:
        UsageError: it is not set.
    """
    value = os.environ.get(variable, "")
    if not value:
        raise UsageError(
            f"{key}: the environment variable {variable} is not set. Set it: export {variable}=..."
        )
    return value


class AsyncJsonClient:
    """Posts JSON to one URL; all calls must come from one event loop.

    Args:
        url: that requests go to.
        headers: sent with every request; their values never appear in a message.
        timeout: seconds for one request.
        retries: further attempts after a failed connection, a timeout, or a status such as 429 and 503.
        backoff: seconds before the first of them, doubled each time; `Retry-After` counts before it.
        concurrency: most requests at a time.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        timeout: float,
        retries: int,
        backoff: float,
        concurrency: int,
    ) -> None:
        self.url, self._headers = url, dict(headers)
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._slots = asyncio.Semaphore(concurrency)
        self._client: Any = None
        parts = urlsplit(url)
        self._called = f"{parts.scheme}://{parts.netloc}{parts.path}"

    async def post(self, body: Mapping[str, Any]) -> Any:
        """Send a request; returns the JSON of the answer.

        Raises:
            RewardError: no answer, or none that can be used, after all attempts.
        """
        async with self._slots:
            for attempt in range(self._retries + 1):
                failure, result = await self._try(body)
                if failure is None:
                    return result
                if result is None or attempt == self._retries:
                    break
                await asyncio.sleep(min(max(result, self._backoff * 2**attempt), BACKOFF_LIMIT))
        tries = "" if attempt == 0 else f" ({attempt + 1} attempts)"
        raise RewardError(f"{self._called} {failure}{tries}")

    async def _try(self, body: Mapping[str, Any]) -> tuple[str | None, Any]:
        """Try once; returns (None, the answer) or (a message, seconds to wait before the next attempt).

        The seconds are None where another attempt cannot help.
        """
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(headers=self._headers)
        try:
            answer = await exchange(self._client, "POST", self.url, body, seconds=self._timeout, most=LARGEST)
        except httpx.TimeoutException:
            return f"did not answer within {self._timeout:g} s", 0.0
        except httpx.HTTPError as error:
            return f"cannot be reached: {type(error).__name__}: {self._hide(str(error))}", 0.0
        if answer.elsewhere is not None:
            place = self._hide(answer.elsewhere)[:200]
            return f"answered {answer.status}, and points to {place}. Set url to where the server is", None
        if answer.status != httpx.codes.OK:
            again = _retry_after(answer.headers) if answer.status in RETRIED else None
            return f"answered {answer.status}: {self._hide(answer.text)[:200]}", again
        try:
            return None, answer.json()
        except ValueError:
            return f"answered something that is no JSON: {self._hide(answer.text)[:200]}", None

    def _hide(self, text: str) -> str:
        """A text without the values of the headers, which a server may repeat in its answer."""
        for value in self._headers.values():
            for part in {value, value.removeprefix("Bearer ")} - {""}:
                text = text.replace(part, "***")
        return text

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
