"""Work with a trained run: chat with it, evaluate it, export it."""

from .opened import Opened, open_run

__all__ = ["Opened", "open_run"]
