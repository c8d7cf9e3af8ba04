"""The registry itself: joining, naming, telling."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from pydantic import BaseModel, ValidationError

from .. import __version__, entry_points
from ..errors import PluginError, RlhfPeftError
from ..hookspecs import REGISTERS, DeclaresMemory
from ..kit.functions import FileFunction
from ..kit.functions.in_process import preserved_settings
from ..kit.functions.process import NotImported, inspect_function
from ..recipe.messages import did_you_mean, rewrite
from ..types import MemoryNeeds
from .isolation import (
    builtins,
    file_version,
    function_plugin,
    held,
    import_safely,
    load_file,
    new_manager,
    try_alone,
)
from .records import Broken, Entry, Loaded
from .requirements import check_requirement

log = logging.getLogger("rlhf_peft.registry")

CORE = "rlhf-peft"
MAX_FAILURES = 3


DEFAULT_SAMPLER = "cached"
"""The sampler that writes where a recipe names none: fixed prompts, labelling, evaluation without an RL stage."""


class Registry:
    """Everything that a recipe can name, and everyone who listens to a run.

    Attributes:
        plugins: those that work, built-ins first.
        broken: those that do not, with the reason.
        disabled: distributions that `RLHF_PEFT_DISABLE_PLUGINS` leaves out.
        code_files: files that the command line named, to be copied into the run folder.
        strict_plugins: an observer that raises ends the run.
    """

    def __init__(self, *, strict_plugins: bool = False) -> None:
        self.strict_plugins = strict_plugins
        self.plugins: list[Loaded] = []
        self.broken: list[Broken] = []
        self.disabled: list[str] = []
        self.code_files: list[Path] = []
        self.no_plugins = False
        self._manager = new_manager()
        self._failures: Counter[str] = Counter()

    @classmethod
    def load(
        cls,
        plugin_files: Iterable[str | Path] = (),
        no_plugins: bool = False,
        *,
        strict_plugins: bool = False,
    ) -> Registry:
        """Built-ins, then installed plugins, then files.

        Args:
            plugin_files: modules named on the command line.
            no_plugins: leave out installed plugins.
            strict_plugins: see the class.

        Raises:
            PluginError: a file of `plugin_files` does not work.
        """
        registry = cls(strict_plugins=strict_plugins)
        registry.no_plugins = no_plugins
        for module in builtins():
            name = module.__name__.rpartition(".")[2]
            try:
                registry.add(module, name, CORE, __version__, "built-in")
            except PluginError as error:
                raise PluginError(f"built-in {name}: {error}") from error
        if not no_plugins:
            registry._add_installed()
        for path in plugin_files:
            registry.add_file(path)
        return registry

    # --- joining ---

    def add(
        self, module: Any, name: str, distribution: str = CORE, version: str = "", origin: str = "given"
    ) -> Loaded:
        """Take in a plugin, whole or not at all.

        Raises:
            PluginError: it does not work; nothing of it was kept.
        """
        return self._join(Loaded(name, distribution, version, origin, module))

    def _join(self, loaded: Loaded, load: Callable[[], Any] | None = None) -> Loaded:
        """Import a plugin where it is not there yet, try it alone, and take it in."""
        with held(loaded):
            if load is not None:
                loaded.module = import_safely(load)
            try_alone(loaded)
        for entry in loaded.entries:
            taken = self._find(entry.kind, entry.name)
            if taken:
                raise PluginError(f"the name {entry.name} is taken: {taken[0]}")
        try:
            self._manager.register(loaded.module, name=f"{loaded.distribution}:{loaded.name}")
        except ValueError as error:
            raise PluginError(f"loaded twice: {error}") from None
        self.plugins.append(loaded)
        return loaded

    def add_file(self, path: str | Path) -> Loaded:
        """Take in a one-file plugin, as `--plugin FILE.py` does."""
        file = Path(path)
        try:
            named = Loaded(file.stem, file.stem, file_version(file), "file", None)
            loaded = self._join(named, partial(load_file, file))
        except PluginError as error:
            raise PluginError(f"--plugin {path}: {error}") from None
        self.code_files.append(file)
        return loaded

    def add_reward_function(self, path: str | Path, function: str, factory: Callable[..., Any]) -> str:
        """Offer a function of a file as a reward of that name, as `--reward FILE.py:FUNC` does.

        The file is not imported into this process: a process of its own does that, now to see whether it works.

        Args:
            path: the file.
            function: its name there.
            factory: called as `factory(options, function, name)`; has `Options`.

        Returns:
            The reward's name.

        Raises:
            PluginError: there is no such file or function, the file's import failed, or the name is taken.
        """
        file = Path(path)
        where = f"--reward {path}:{function}"
        if not file.is_file():
            raise PluginError(f"{where}: {path}: no such file")
        target = _examined(FileFunction(file, function), where)
        try:
            self.add(
                function_plugin(function, target, factory), function, file.stem, file_version(file), "file"
            )
        except PluginError as error:
            raise PluginError(f"{where}: {error}") from None
        if file not in self.code_files:
            self.code_files.append(file)
        return function

    def _add_installed(self) -> None:
        for point in entry_points.points(entry_points.PLUGINS):
            if point.disabled:
                self.disabled.append(point.name if point.distribution == "unknown" else point.distribution)
                continue
            try:
                if point.distribution == CORE:
                    raise PluginError(
                        f"it calls itself {CORE}, which is this program's own name; give it another one"
                    )
                self._join(
                    Loaded(point.name, point.distribution, point.version, "installed", None), point.load
                )
            except PluginError as error:
                self.broken.append(Broken(point.name, point.distribution, str(error), point.version))

    # --- naming ---

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, sorted."""
        return sorted(entry.name for entry in self._entries(kind))

    def entry(self, kind: str, name: str) -> Entry:
        """What a name, or `distribution:name`, stands for.

        Raises:
            PluginError: unknown; lists the known names.
        """
        found = self._find(kind, name)
        if found:
            return found[0]
        known = self.names(kind)
        broken = "".join(f" Left out: {broken}." for broken in self.broken)
        listed = f"Known: {', '.join(known) or 'none'}.{broken}"
        raise PluginError(f"unknown {kind.removesuffix('s')} {name!r}.{did_you_mean(name, known)} {listed}")

    def has(self, kind: str, name: str) -> bool:
        """Whether a name, or `distribution:name`, is known."""
        return bool(self._find(kind, name))

    def options_model(self, kind: str, name: str) -> type[BaseModel]:
        """The options of something registered."""
        return self.entry(kind, name).options

    def options(self) -> dict[str, dict[str, type[BaseModel]]]:
        """Kind to name to options, of everything registered."""
        return {kind: {entry.name: entry.options for entry in self._entries(kind)} for kind in REGISTERS}

    def make(self, kind: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """The reward, sampler, algorithm or dataset of that name, its options checked.

        Raises:
            PluginError: the name is unknown, the options are wrong, or it could not be made.
        """
        entry = self.entry(kind, name)
        checked = self._checked(entry, options)
        wraps = {"make": self.make} if getattr(entry.factory, "wants_make", False) else {}
        try:
            return entry.factory(checked, **wraps)
        except RlhfPeftError:
            raise
        except Exception as error:
            raise PluginError(f"{entry} could not be made: {type(error).__name__}: {error}") from error

    def memory(self, kind: str, name: str, options: Mapping[str, Any] | None = None) -> MemoryNeeds:
        """What something registered would need of the device's memory; nothing is made.

        Raises:
            PluginError: the name is unknown, or the options are wrong.
        """
        entry = self.entry(kind, name)
        if not isinstance(entry.factory, DeclaresMemory):
            return MemoryNeeds()
        wraps = {"memory": self.memory} if getattr(entry.factory, "wants_make", False) else {}
        return entry.factory.memory(self._checked(entry, options), **wraps)

    def metrics(self, kind: str) -> dict[str, Mapping[str, str]]:
        """Name to the figures that something registered of a kind logs: name of the figure to its formula."""
        return {name: getattr(self.entry(kind, name).factory, "metrics", {}) for name in self.names(kind)}

    def check_requirement(self, requirement: str) -> str | None:
        """What is wrong with a requirement of a recipe, and what to type; None where it is met."""
        loaded = {plugin.distribution for plugin in self.plugins}
        return check_requirement(requirement, loaded, self.broken, self.no_plugins, self.disabled)

    def versions(self) -> dict[str, str]:
        """Distribution to version of every plugin that works; a file has the hash of its contents."""
        return {loaded.distribution: loaded.version for loaded in self.plugins}

    def describe(self) -> list[dict[str, Any]]:
        """Each working plugin: name, distribution, version, api, origin, registrations, observed hooks, notes."""
        return [
            {
                "name": loaded.name,
                "distribution": loaded.distribution,
                "version": loaded.version,
                "api": loaded.api,
                "origin": loaded.origin,
                "registers": {
                    kind: sorted(entry.name for entry in loaded.entries if entry.kind == kind)
                    for kind in REGISTERS
                },
                "hooks": loaded.hooks,
                "notes": loaded.notes,
            }
            for loaded in self.plugins
        ]

    def _checked(self, entry: Entry, options: Mapping[str, Any] | None) -> BaseModel:
        """The options of something registered.

        Raises:
            PluginError: they are wrong.
        """
        given = dict(options or {})
        try:
            return entry.options.model_validate(given)
        except ValidationError as error:
            problems = rewrite(error.errors(include_url=False), entry.options, given)
            text = "; ".join(
                f"{'.'.join(map(str, loc)) or 'options'}: {message}" for loc, message in problems
            )
            raise PluginError(f"{entry}: {text}") from None

    def _entries(self, kind: str) -> Iterator[Entry]:
        if kind not in REGISTERS:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join(REGISTERS)}")
        return (entry for loaded in self.plugins for entry in loaded.entries if entry.kind == kind)

    def _find(self, kind: str, name: str) -> list[Entry]:
        distribution, colon, short = name.rpartition(":")
        owner = canonicalize_name(distribution)
        return [
            entry
            for entry in self._entries(kind)
            if entry.name == short and (not colon or canonicalize_name(entry.distribution) == owner)
        ]

    # --- telling ---

    @property
    def hook(self) -> Any:
        """Pluggy's hooks; `broadcast` is the one that survives an observer."""
        return self._manager.hook

    def broadcast(self, hook_name: str, **kwargs: Any) -> None:
        """Tell every observer; one that raises is logged and, after three times, switched off.

        Raises:
            RlhfPeftError: an observer raised and `strict_plugins` is set.
        """
        for implementation in reversed(getattr(self.hook, hook_name).get_hookimpls()):
            name = implementation.plugin_name
            if self._failures[name] >= MAX_FAILURES:
                continue
            try:
                with preserved_settings():
                    implementation.function(*(kwargs[argument] for argument in implementation.argnames))
            except Exception as error:
                self._failed(name, hook_name, error)

    def _failed(self, name: str, hook_name: str, error: Exception) -> None:
        told = f"plugin {name} raised in {hook_name}: {type(error).__name__}: {error}"
        if self.strict_plugins:
            raise RlhfPeftError(f"{told}. Leave out --strict-plugins to go on without it.") from error
        self._failures[name] += 1
        off = self._failures[name] >= MAX_FAILURES
        log.warning("%s%s", told, ". That was the third time: it is switched off." if off else "")
        log.debug("%s", told, exc_info=error)


def _examined(function: FileFunction, where: str) -> FileFunction:
    """A function of a file, of which it is known whether it is async.

    Raises:
        PluginError: its file cannot be imported, or does not hold it.
    """
    name = function.target.qualname
    try:
        told = inspect_function(function.target)
    except NotImported as error:
        if error.functions is None:
            raise PluginError(
                f"{where}: {str(error).rstrip('.')}. Expected a file that Python can import and that holds the "
                f"function {name}; try it:  python {function.target.where}"
            ) from None
        told = {"callable": False, "functions": error.functions}
    if not told["callable"]:
        own = told["functions"]
        raise PluginError(
            f"{where}: the file has no function {name}.{did_you_mean(name, own)} It has: {', '.join(own) or 'none'}."
        )
    return FileFunction(Path(function.target.where), name, is_async=told["is_async"])
