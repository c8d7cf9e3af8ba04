"""The page on which a person compares completions: served on this machine alone, to whoever has the link.

Which completion stands on the left is drawn for each person and pair, and nothing on the page says what wrote it.
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
"""What the page says where `--instructions` was not given."""
LONGEST = 10_000
"""Characters of a note or a name; more is nobody's note."""
MOST_BYTES = 2**18
"""Of what a page sends: a note, four bytes a character and each escaped, is less."""
MOST_PAIRS, MOST_SECONDS = 2**53, 1e7


def make_app(
    store: Store, token: str, title: str = "Which answer is better?", among: Sequence[int] | None = None
) -> Starlette:
    """The application; everything is under `/<token>/`.

    Args:
        store: of pairs and judgements.
        token: without which nothing is found.
        title: of the page.
        among: numbers of the pairs that are shown; None: all.
    """
    page = (PAGE / "label.html").read_text(encoding="utf-8")
    page = page.replace("/*css*/", (PAGE / "label.css").read_text(encoding="utf-8"))
    page = page.replace("/*js*/", (PAGE / "label.js").read_text(encoding="utf-8"))
    page = page.replace("{{title}}", html.escape(title))
    page = page.replace("{{instructions}}", html.escape(store.instructions or INSTRUCTIONS))

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            if not secrets.compare_digest(request.path_params["token"].encode(), token.encode()):
                return Response("not found", 404)
            try:
                response = await answer(request)
            except _TooLarge:
                # The rest of the body is not read, so nothing else can come over this connection.
                response = JSONResponse({"error": f"more than {MOST_BYTES:,} bytes"}, 413)
                response.headers["Connection"] = "close"
            except (ValueError, KeyError, TypeError) as error:
                response = JSONResponse({"error": str(error)[:200]}, 400)
            response.headers.update(HEADERS)
            return response

        return handle

    def shown(annotator: str, pair: Pair | None) -> dict[str, Any]:
        done, every = store.progress(annotator, among)
        known: dict[str, Any] = {"pair": None, "done": done, "all": every}
        if pair is None:
            return {**known, "agreement": _agreement(store, annotator)}
        left, right = (pair.b, pair.a) if swapped(annotator, pair.id) else (pair.a, pair.b)
        return {**known, "pair": pair.id, "prompt": pair.prompt, "left": left, "right": right}

    async def show(request: Request) -> Response:
        return HTMLResponse(page)

    async def following(request: Request) -> Response:
        annotator = _name(request.query_params.get("annotator"))
        return JSONResponse(shown(annotator, store.next(annotator, among)))

    async def judge(request: Request) -> Response:
        said = await _json(request)
        annotator, number = _name(said.get("annotator")), _within(said["pair"], "pair", MOST_PAIRS)
        if number != int(number):
            raise ValueError("pair is no whole number")
        number = int(number)
        pair = store.pair(number)
        if pair is None:
            raise ValueError(f"there is no pair {number}")
        choice = _choice(str(said["choice"]), swapped(annotator, number))
        note = str(said.get("note", ""))[:LONGEST]
        store.judge(
            number, annotator, choice, note, float(_within(said.get("seconds"), "seconds", MOST_SECONDS))
        )
        return JSONResponse(shown(annotator, store.next(annotator, among)))

    async def undo(request: Request) -> Response:
        annotator = _name((await _json(request)).get("annotator"))
        before = store.undo(annotator)
        pair = store.next(annotator, among) if before is None else store.pair(before.pair)
        note = "" if before is None else before.note
        return JSONResponse({**shown(annotator, pair), "note": note})

    routes = [
        Route("/{token}/", guarded(show)),
        Route("/{token}/next", guarded(following)),
        Route("/{token}/judge", guarded(judge), methods=["POST"]),
        Route("/{token}/undo", guarded(undo), methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)])


async def _json(request: Request) -> dict[str, Any]:
    # Only a page of this origin can send this type without being asked by the browser first.
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise ValueError("expected JSON")
    try:
        said = json.loads(await _body(request), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(said, dict):
        raise ValueError("expected an object")
    return said


class _TooLarge(Exception):
    """A body holds more than any judgement."""


async def _body(request: Request) -> bytes:
    """The body, of which no more is read than a judgement can hold.

    Raises:
        _TooLarge: it is larger.
    """
    told = request.headers.get("content-length", "0")
    if not told.isdecimal() or int(told[:20]) > MOST_BYTES:
        raise _TooLarge
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise _TooLarge
    return body


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _within(value: Any, name: str, most: float) -> float:
    """A number from 0 to `most`; None counts as 0.

    Raises:
        ValueError: it is none.
    """
    number = 0 if value is None else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
        raise ValueError(f"{name} is no number from 0 to {most:g}")
    return number


def _name(value: Any) -> str:
    name = str(value or "").strip()[:100]
    if not name:
        raise ValueError("say who you are")
    return name


def swapped(annotator: str, pair: int) -> bool:
    """Whether b stands on the left for this person: the same each time, and even over pairs."""
    return bool(hashlib.sha256(f"{annotator}/{pair}".encode()).digest()[0] & 1)


def _choice(side: str, swap: bool) -> Choice:
    known = {"left": "b" if swap else "a", "right": "a" if swap else "b", "tie": "tie", "skip": "skip"}
    if side not in known:
        raise ValueError(f"{side!r} is none of {', '.join(known)}")
    return cast(Choice, known[side])


def _agreement(store: Store, annotator: str) -> list[dict[str, Any]]:
    """With each of the others who judged a pair in common."""
    found = [agreed for agreed in agreements(store.judgements()) if annotator in agreed.people]
    return [
        {
            "with": next(who for who in a.people if who != annotator),
            "pairs": a.pairs,
            "agreed": a.agreed,
            "kappa": a.kappa,
        }
        for a in found
    ]
