"""Imports and checks a plugin alone, so that one which does not work leaves nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
from pydantic import BaseModel

from .. import foreign
from ..errors import PluginError
from ..hookspecs import HOOK_API, PROJECT, REGISTERS, Factory, HookSpecs, Register, hookimpl
from ..kit.functions.in_process import EVERYTHING, Setting, import_file, preserved_settings
from ..kit.functions.replaced import FunctionSnapshot
from ..recipe.schema import RESERVED
from .records import Entry, LoadedPlugin

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager with the hooks of this package."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    return manager


def builtins() -> list[Any]:
    """The plugin modules that come with the package."""
    module = importlib.import_module("rlhf_peft.builtin")
    return list(getattr(module, "PLUGINS", ()))


@contextlib.contextmanager
def guarded_import(loaded: LoadedPlugin) -> Iterator[None]:
    """Protect the process while a plugin is imported and registered inside the block; built-ins are not checked.

    What the plugin changes is restored, or noted in `loaded.notes` where that cannot be done.

    Raises:
        PluginError: it has replaced functions that training depends on; they were restored.
    """
    if loaded.origin == "built-in":
        yield
        return
    before, thread_count = FunctionSnapshot(), len(foreign.threads)
    replaced: list[str] = []
    try:
        with foreign.importing(str(loaded), loaded.remedy):
            yield
    finally:
        replaced = before.put_back()
    if replaced:
        raise PluginError(
            f"as it was imported it replaced {', '.join(replaced)}, on which every metric of a run depends; that was "
            "undone. A plugin may only do so inside its hooks, and has to undo it there"
        )
    if variables := before.new_variables():
        loaded.notes.append(f"has set the environment variables {', '.join(variables)}")
    names = [thread.name for _, thread in foreign.threads[thread_count:] if thread.is_alive()]
    if names:
        loaded.notes.append(f"has started the threads {', '.join(names)}")


def import_safely(load: Callable[[], Any]) -> Any:
    """Call a function that imports a plugin; whatever it raises, `sys.exit` included, becomes a PluginError."""
    return _safely(load, "its import failed")


def _safely(call: Callable[[], Any], what: str, settings: tuple[Setting, ...] = EVERYTHING) -> Any:
    """Call a plugin's code: errors other than Ctrl-C become a PluginError, and its output goes to stderr.

    Args:
        call: the plugin's code.
        what: the beginning of the error's message.
        settings: that are restored afterwards.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), preserved_settings(settings):
            return call()
    except (PluginError, pluggy.PluginValidationError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginError(f"{what}: {type(error).__name__}: {_one_line(error)}") from error


def load_file(path: Path) -> Any:
    """Import the module of a file into this process, under a unique name.

    Raises:
        PluginError: its import failed.
    """
    return import_safely(lambda: import_file(path))


def file_version(path: Path) -> str:
    """A version for a file: the beginning of its hash.

    Raises:
        PluginError: there is no such file.
    """
    if not path.is_file():
        raise PluginError(f"{path}: no such file")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def function_plugin(name: str, function: Callable[..., Any], factory: Callable[..., Any]) -> Any:
    """A plugin that registers one function as a reward.

    Args:
        name: of the reward.
        function: that scores completions.
        factory: called as `factory(options, function, name)`; has `Options`.
    """

    def make(options: Any) -> Any:
        return factory(options, function, name)

    make.Options = factory.Options  # type: ignore[attr-defined]

    @hookimpl
    def rlhf_peft_register_rewards(register: Register) -> None:
        register(name, make)

    return SimpleNamespace(rlhf_peft_register_rewards=rlhf_peft_register_rewards)


def try_alone(loaded: LoadedPlugin) -> None:
    """Check a plugin by itself, and set the entries and hooks of its record.

    Settings of the process are restored after each of its calls, except for built-ins, which change none.

    Raises:
        PluginError: hooks of another version, unknown hooks, wrong signatures, bad registrations.
    """
    loaded.api = _api(loaded.module)
    manager = new_manager()
    settings = () if loaded.origin == "built-in" else EVERYTHING
    try:
        _safely(
            lambda: manager.register(loaded.module, name=loaded.name), "it cannot be registered", settings
        )
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"a hook does not fit: {_one_line(error)}") from None
    callers = manager.get_hookcallers(loaded.module) or []
    if not callers:
        raise PluginError("it has no hook: nothing in it is marked with @hookimpl")
    _no_wrappers(callers)
    loaded.hooks = sorted(caller.name for caller in callers if "_register_" not in caller.name)
    for kind in REGISTERS:
        call = partial(getattr(manager.hook, f"rlhf_peft_register_{kind}"), register=_collector(loaded, kind))
        _safely(call, f"registering its {kind} failed", settings)


def _api(module: Any) -> int:
    version = getattr(module, "HOOK_API", HOOK_API)
    major = int(version) if isinstance(version, (int, float)) else None
    if major != HOOK_API:
        raise PluginError(f"it is written for HOOK_API {version}; this rlhf-peft has {HOOK_API}")
    return HOOK_API


def _no_wrappers(callers: list[Any]) -> None:
    for caller in callers:
        if any(impl.wrapper or impl.hookwrapper for impl in caller.get_hookimpls()):
            raise PluginError(f"{caller.name} is a wrapper; hooks here are plain functions")


def _collector(loaded: LoadedPlugin, kind: str) -> Register:
    def register(name: str, factory: Factory) -> None:
        _check_factory(kind, name, factory)
        if any(entry.kind == kind and entry.name == name for entry in loaded.entries):
            raise PluginError(f"it registers {kind} {name} twice")
        loaded.entries.append(Entry(kind, name, factory, loaded.distribution, loaded.version))

    return register


def _check_factory(kind: str, name: str, factory: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(f"{name!r} cannot name one of the {kind}: letters, digits, '.', '_' and '-'")
    if not callable(factory):
        raise PluginError(f"{kind} {name}: the factory cannot be called")
    options = getattr(factory, "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise PluginError(f"{kind} {name}: the factory needs `Options`, a subclass of plugin.Options")
    if options.model_config.get("extra") != "forbid":
        raise PluginError(f"{kind} {name}: its Options must forbid unknown keys; subclass plugin.Options")
    hidden = sorted(RESERVED[kind] & {field.alias or key for key, field in options.model_fields.items()})
    if hidden:
        raise PluginError(
            f"{kind} {name}: the recipe itself has the keys {', '.join(hidden)}; rename these options"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
