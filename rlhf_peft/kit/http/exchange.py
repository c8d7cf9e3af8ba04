"""One request to a server and its answer, within limits of time and memory whatever the server sends."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

PLAIN = {"Accept-Encoding": "identity"}
"""Headers of every request: a compressed answer could become a thousand times larger than what came."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server.

    Attributes:
        status: the HTTP status.
        headers: of the answer; their names are case-insensitive.
        content: the body.
    """

    status: int
    headers: httpx.Headers
    content: bytes

    @property
    def text(self) -> str:
        """The body as text; bytes that are no UTF-8 are replaced."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: the body is no JSON.
        """
        try:
            return json.loads(self.content)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    @property
    def elsewhere(self) -> str | None:
        """The location of a redirection, which is never followed; None where the answer is none."""
        return self.headers.get("location") if 300 <= self.status < 400 else None


async def exchange(
    client: httpx.AsyncClient, method: str, url: str, payload: Any, *, seconds: float, most: int
) -> Answer:
    """Send a request, and read the whole answer.

    Args:
        client: of httpx.
        method: of HTTP.
        url: that the request goes to.
        payload: sent as JSON.
        seconds: for the whole exchange, from the first byte sent to the last byte received.
        most: bytes of the body.

    Raises:
        httpx.HTTPError: there is no answer, or none that is complete, plain, and within these bounds.
    """
    import httpx

    parts, size = [], 0
    try:
        async with (
            asyncio.timeout(seconds),
            client.stream(method, url, json=payload, headers=PLAIN, timeout=None) as response,
        ):
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.strip().lower() not in ("", "identity"):
                raise httpx.DecodingError(
                    f"the answer is compressed by {encoding[:40]}, which was not asked for"
                )
            async for part in response.aiter_raw():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise httpx.ReadError(f"the answer has more than {most:,} bytes")
    except TimeoutError:
        raise httpx.ReadTimeout(f"the answer did not end within {seconds:g} seconds") from None
    return Answer(response.status_code, response.headers, b"".join(parts))
