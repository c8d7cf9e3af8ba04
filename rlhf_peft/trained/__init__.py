"""What is done with a run once it is trained: talk to it, measure it, hand it over."""

from .opened import Opened, open_run

__all__ = ["Opened", "open_run"]
