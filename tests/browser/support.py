"""The labelling page, served in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from rlhf_peft.labelling.app import make_app
from rlhf_peft.labelling.store import Store


class Served:
    """A server in a thread.

    Attributes:
        link: of the page.
    """

    def __init__(self, store: Store) -> None:
        config = uvicorn.Config(make_app(store, "token"), port=0, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.link = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/token/"

    def stop(self) -> None:
        """It serves no more."""
        self._server.should_exit = True
        self._thread.join(10)


@contextmanager
def served(store: Store) -> Iterator[Served]:
    """A server, while the context lasts."""
    server = Served(store)
    yield server
    server.stop()
