"""The web page on which a person compares completions. It is served on this machine only, to whoever has the link.

Which completion is on the left is random for each person and pair, and the page does not show where they come from.
"""

from __future__ import annotations

import hashlib
import html
import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .results import agreements
from .store import Choice, Pair, Store

HOSTS = ["127.0.0.1", "localhost"]
Handler = Callable[[Request], Awaitable[Response]]
PAGE = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
INSTRUCTIONS = (
    "Read the prompt and both answers, and choose the answer that you would rather have got. Take a tie where neither "
    "is better, and skip a pair that you cannot judge: it is left out."
)
"""The instructions on the page if `--instructions` was not given."""
LONGEST = 10_000
"""Most characters of a note; longer notes are cut."""
MOST_BYTES = 2**18
"""Most bytes of a request: the longest note needs less, even with four escaped bytes per character."""
MOST_PAIRS, MOST_SECONDS = 2**53, 1e7


def make_app(
    store: Store, token: str, title: str = "Which answer is better?", among: Sequence[int] | None = None
) -> Starlette:
    """The web application; every address begins with `/<token>/`.

    Args:
        store: store of pairs and judgements.
        token: secret part of every address; a request without it gets status 404.
        title: title of the page.
        among: numbers of the pairs to show; None: all.
    """
    handlers = _Handlers(store, token, _page(title, store.instructions or INSTRUCTIONS), among)
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    return Starlette(routes=handlers.routes(), middleware=[hosts])


def _page(title: str, instructions: str) -> str:
    """The HTML of the page, with its styles and scripts inside."""
    page = (PAGE / "label.html").read_text(encoding="utf-8")
    page = page.replace("/*css*/", (PAGE / "label.css").read_text(encoding="utf-8"))
    page = page.replace("/*js*/", (PAGE / "label.js").read_text(encoding="utf-8"))
    page = page.replace("{{title}}", html.escape(title))
    return page.replace("{{instructions}}", html.escape(instructions))


class _Handlers:
    """Handlers of the page's requests.

    Args:
        store: store of pairs and judgements.
        token: secret part of every address.
        page: HTML of the page.
        among: numbers of the pairs to show; None: all.
    """

    def __init__(self, store: Store, token: str, page: str, among: Sequence[int] | None) -> None:
        self.store, self.token, self.page, self.among = store, token, page, among

    def routes(self) -> list[Route]:
        """All addresses with their handlers."""
        return [
            Route("/{token}/", self.guarded(self.show_page)),
            Route("/{token}/next", self.guarded(self.next_pair)),
            Route("/{token}/judge", self.guarded(self.judge), methods=["POST"]),
            Route("/{token}/undo", self.guarded(self.undo), methods=["POST"]),
        ]

    def guarded(self, handler: Handler) -> Handler:
        """A handler that first checks the token, and turns errors into responses."""

        async def handle(request: Request) -> Response:
            if not secrets.compare_digest(request.path_params["token"].encode(), self.token.encode()):
                return Response("not found", 404)
            try:
                response = await handler(request)
            except _TooLarge:
                # The rest of the body is not read, so nothing else can come over this connection.
                response = JSONResponse({"error": f"more than {MOST_BYTES:,} bytes"}, 413)
                response.headers["Connection"] = "close"
            except (ValueError, KeyError, TypeError) as error:
                response = JSONResponse({"error": str(error)[:200]}, 400)
            response.headers.update(HEADERS)
            return response

        return handle

    async def show_page(self, request: Request) -> Response:
        """The page itself."""
        return HTMLResponse(self.page)

    async def next_pair(self, request: Request) -> Response:
        """The pair that this annotator should judge next."""
        return self._next(_name(request.query_params.get("annotator")))

    async def judge(self, request: Request) -> Response:
        """Save a judgement, and answer with the next pair."""
        data = await _json(request)
        annotator, number = _name(data.get("annotator")), _within(data["pair"], "pair", MOST_PAIRS)
        if number != int(number):
            raise ValueError("pair is no whole number")
        number = int(number)
        if self.store.pair(number) is None:
            raise ValueError(f"there is no pair {number}")
        choice = _choice(str(data["choice"]), swapped(annotator, number))
        note = str(data.get("note", ""))[:LONGEST]
        seconds = float(_within(data.get("seconds"), "seconds", MOST_SECONDS))
        self.store.judge(number, annotator, choice, note, seconds)
        return self._next(annotator)

    async def undo(self, request: Request) -> Response:
        """Take the annotator's last judgement back, and show its pair again."""
        annotator = _name((await _json(request)).get("annotator"))
        judgement = self.store.undo(annotator)
        if judgement is None:
            pair, note = self.store.next(annotator, self.among), ""
        else:
            pair, note = self.store.pair(judgement.pair), judgement.note
        return JSONResponse({**self._state(annotator, pair), "note": note})

    def _next(self, annotator: str) -> Response:
        return JSONResponse(self._state(annotator, self.store.next(annotator, self.among)))

    def _state(self, annotator: str, pair: Pair | None) -> dict[str, Any]:
        """What the page shows: progress and a pair, or the agreement with others if no pair is left."""
        done, total = self.store.progress(annotator, self.among)
        state: dict[str, Any] = {"pair": None, "done": done, "all": total}
        if pair is None:
            return {**state, "agreement": _agreement(self.store, annotator)}
        left, right = (pair.b, pair.a) if swapped(annotator, pair.id) else (pair.a, pair.b)
        return {**state, "pair": pair.id, "prompt": pair.prompt, "left": left, "right": right}


async def _json(request: Request) -> dict[str, Any]:
    # For this content type a browser lets a page of another origin send a request only after a preflight request.
    """The JSON object in a request's body.

    Raises:
        ValueError: the body is of another type, or is no JSON object.
        _TooLarge: the body is too large.
    """
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise ValueError("expected JSON")
    try:
        data = json.loads(await _body(request), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("expected an object")
    return data


class _TooLarge(Exception):
    """A request's body is larger than any judgement."""


async def _body(request: Request) -> bytes:
    """Read a request's body, but no more than a judgement can need.

    Raises:
        _TooLarge: the body is larger.
    """
    declared_length = request.headers.get("content-length", "0")
    if not declared_length.isdecimal() or int(declared_length[:20]) > MOST_BYTES:
        raise _TooLarge
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise _TooLarge
    return body


def _no_number(text: str) -> float:
    """Refuse NaN and infinity, which are no JSON."""
    raise ValueError(f"{text} is no number of JSON")


def _within(value: Any, name: str, most: float) -> float:
    """A number from 0 to `most`; None counts as 0.

    Raises:
        ValueError: the value is no such number.
    """
    number = 0 if value is None else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
        raise ValueError(f"{name} is no number from 0 to {most:g}")
    return number


def _name(value: Any) -> str:
    """The name of an annotator, at most 100 characters."""
    name = str(value or "").strip()[:100]
    if not name:
        raise ValueError("say who you are")
    return name


def swapped(annotator: str, pair: int) -> bool:
    """Whether completion b is on the left for this person: fixed for each pair, and balanced over pairs."""
    return bool(hashlib.sha256(f"{annotator}/{pair}".encode()).digest()[0] & 1)


def _choice(side: str, swap: bool) -> Choice:
    """The choice in terms of a and b, from the side on the page."""
    choices = {"left": "b" if swap else "a", "right": "a" if swap else "b", "tie": "tie", "skip": "skip"}
    if side not in choices:
        raise ValueError(f"{side!r} is none of {', '.join(choices)}")
    return cast(Choice, choices[side])


def _agreement(store: Store, annotator: str) -> list[dict[str, Any]]:
    """The annotator's agreement with each other person who judged some of the same pairs."""
    with_others = [one for one in agreements(store.judgements()) if annotator in one.people]
    return [
        {
            "with": next(who for who in a.people if who != annotator),
            "pairs": a.pairs,
            "agreed": a.agreed,
            "kappa": a.kappa,
        }
        for a in with_others
    ]
