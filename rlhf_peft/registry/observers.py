"""Calls the hooks of observers; one that raises does not stop the run."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pluggy

from ..errors import RlhfPeftError
from ..kit.functions.in_process import preserved_settings

log = logging.getLogger("rlhf_peft.registry")

MAX_FAILURES = 3
"""Errors after which an observer is switched off."""


class Observers:
    """The observers of a run.

    Args:
        manager: with the plugins.
        strict: an observer that raises ends the run.
    """

    def __init__(self, manager: pluggy.PluginManager, *, strict: bool) -> None:
        self._manager, self._strict = manager, strict
        self._failures: Counter[str] = Counter()

    def broadcast(self, hook_name: str, **kwargs: Any) -> None:
        """Call every observer of a hook; one that raises is logged and, after three times, switched off.

        Raises:
            RlhfPeftError: an observer raised, and `strict` is set.
        """
        for implementation in reversed(getattr(self._manager.hook, hook_name).get_hookimpls()):
            name = implementation.plugin_name
            if self._failures[name] >= MAX_FAILURES:
                continue
            try:
                with preserved_settings():
                    implementation.function(*(kwargs[argument] for argument in implementation.argnames))
            except Exception as error:
                self._failed(name, hook_name, error)

    def _failed(self, name: str, hook_name: str, error: Exception) -> None:
        message = f"plugin {name} raised in {hook_name}: {type(error).__name__}: {error}"
        if self._strict:
            raise RlhfPeftError(f"{message}. Leave out --strict-plugins to go on without it.") from error
        self._failures[name] += 1
        off = self._failures[name] >= MAX_FAILURES
        log.warning("%s%s", message, ". That was the third time: it is switched off." if off else "")
        log.debug("%s", message, exc_info=error)
