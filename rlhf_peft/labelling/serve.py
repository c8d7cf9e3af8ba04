"""Serves the labelling page on this machine only, under a link that cannot be guessed."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence

from ..errors import UsageError
from .app import make_app
from .store import Store

HOST = "127.0.0.1"


def serve(
    store: Store,
    *,
    port: int = 0,
    title: str,
    among: Sequence[int] | None = None,
    on_ready: Callable[[str], None],
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        store: store of pairs and judgements.
        port: port to listen on; 0 takes a free one.
        title: title of the page.
        among: numbers of the pairs to show; None: all.
        on_ready: called with the link once the server listens.

    Raises:
        UsageError: the port is taken.
    """
    import uvicorn

    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise UsageError(
            f"--port {port}: {error.strerror or error}. Leave it out to take a free one."
        ) from error
    listening.listen()  # connections wait from now on until the server runs
    token = secrets.token_urlsafe(16)
    config = uvicorn.Config(
        make_app(store, token, title, among), log_level="warning", access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    on_ready(f"http://{HOST}:{listening.getsockname()[1]}/{token}/")
    with listening:
        server.run(sockets=[listening])
