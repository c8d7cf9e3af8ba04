"""The registry: it registers plugins, finds what recipes name, and calls observers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from pydantic import BaseModel, ValidationError

from .. import __version__, entry_points
from ..errors import PluginError, RlhfPeftError
from ..hookspecs import REGISTERS, DeclaresMemory
from ..recipe.messages import did_you_mean, rewrite
from ..types import MemoryNeeds
from .isolation import (
    builtins,
    file_version,
    function_plugin,
    guarded_import,
    import_safely,
    load_file,
    new_manager,
    try_alone,
)
from .observers import Observers
from .records import BrokenPlugin, Entry, LoadedPlugin
from .requirements import check_requirement
from .reward_files import examined_function

CORE = "rlhf-peft"
DEFAULT_SAMPLER = "cached"
"""The sampler where a recipe names none: for fixed prompts, labelling, and evaluation without an RL stage."""


class Registry:
    """Everything that a recipe can name, and the observers of a run.

    Attributes:
        plugins: the plugins that work, built-ins first.
        broken: the plugins that do not work, with the reason.
        disabled: distributions that `RLHF_PEFT_DISABLE_PLUGINS` leaves out.
        code_files: files that the command line named, to be copied into the run folder.
        strict_plugins: an observer that raises ends the run.
    """

    def __init__(self, *, strict_plugins: bool = False) -> None:
        self.strict_plugins = strict_plugins
        self.plugins: list[LoadedPlugin] = []
        self.broken: list[BrokenPlugin] = []
        self.disabled: list[str] = []
        self.code_files: list[Path] = []
        self.no_plugins = False
        self._manager = new_manager()
        self._observers = Observers(self._manager, strict=strict_plugins)

    @classmethod
    def load(
        cls,
        plugin_files: Iterable[str | Path] = (),
        no_plugins: bool = False,
        *,
        strict_plugins: bool = False,
    ) -> Registry:
        """Make a registry of built-ins, then installed plugins, then files.

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

    # --- registering ---

    def add(
        self, module: Any, name: str, distribution: str = CORE, version: str = "", origin: str = "given"
    ) -> LoadedPlugin:
        """Register a plugin completely or not at all.

        Raises:
            PluginError: it does not work; nothing of it was registered.
        """
        return self._join(LoadedPlugin(name, distribution, version, origin, module))

    def _join(self, loaded: LoadedPlugin, load: Callable[[], Any] | None = None) -> LoadedPlugin:
        """Import a plugin with `load` where that is given, check it alone, and register it."""
        with guarded_import(loaded):
            if load is not None:
                loaded.module = import_safely(load)
            try_alone(loaded)
        for entry in loaded.entries:
            existing = self._find(entry.kind, entry.name)
            if existing:
                raise PluginError(f"the name {entry.name} is taken: {existing[0]}")
        try:
            self._manager.register(loaded.module, name=f"{loaded.distribution}:{loaded.name}")
        except ValueError as error:
            raise PluginError(f"loaded twice: {error}") from None
        self.plugins.append(loaded)
        return loaded

    def add_file(self, path: str | Path) -> LoadedPlugin:
        """Register a plugin in one file, as `--plugin FILE.py` does."""
        file = Path(path)
        try:
            named = LoadedPlugin(file.stem, file.stem, file_version(file), "file", None)
            loaded = self._join(named, partial(load_file, file))
        except PluginError as error:
            raise PluginError(f"--plugin {path}: {error}") from None
        self.code_files.append(file)
        return loaded

    def add_reward_function(self, path: str | Path, function: str, factory: Callable[..., Any]) -> str:
        """Register a function of a file as a reward of that name, as `--reward FILE.py:FUNC` does.

        The file is not imported into this process, but into a worker process, which checks that it works.

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
        target = examined_function(file, function, where)
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
                    LoadedPlugin(point.name, point.distribution, point.version, "installed", None), point.load
                )
            except PluginError as error:
                self.broken.append(BrokenPlugin(point.name, point.distribution, str(error), point.version))

    # --- finding ---

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, sorted."""
        return sorted(entry.name for entry in self._entries(kind))

    def entry(self, kind: str, name: str) -> Entry:
        """The entry that is registered by a name, or by `distribution:name`.

        Raises:
            PluginError: the name is unknown; the message lists the known names.
        """
        entries = self._find(kind, name)
        if entries:
            return entries[0]
        known = self.names(kind)
        broken = "".join(f" Left out: {broken}." for broken in self.broken)
        listed = f"Known: {', '.join(known) or 'none'}.{broken}"
        raise PluginError(f"unknown {kind.removesuffix('s')} {name!r}.{did_you_mean(name, known)} {listed}")

    def has(self, kind: str, name: str) -> bool:
        """Whether a name, or `distribution:name`, is registered."""
        return bool(self._find(kind, name))

    def options_model(self, kind: str, name: str) -> type[BaseModel]:
        """The options model of an entry."""
        return self.entry(kind, name).options

    def options(self) -> dict[str, dict[str, type[BaseModel]]]:
        """The options models of all entries: kind to name to model."""
        return {kind: {entry.name: entry.options for entry in self._entries(kind)} for kind in REGISTERS}

    def make(self, kind: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """Make the reward, sampler, algorithm or dataset of a name, after its options are validated.

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
        """The device memory that an entry would need with these options; nothing is made.

        Raises:
            PluginError: the name is unknown, or the options are wrong.
        """
        entry = self.entry(kind, name)
        if not isinstance(entry.factory, DeclaresMemory):
            return MemoryNeeds()
        wraps = {"memory": self.memory} if getattr(entry.factory, "wants_make", False) else {}
        return entry.factory.memory(self._checked(entry, options), **wraps)

    def metrics(self, kind: str) -> dict[str, Mapping[str, str]]:
        """The metrics that the entries of a kind log: name of the entry to (metric to its formula)."""
        return {name: getattr(self.entry(kind, name).factory, "metrics", {}) for name in self.names(kind)}

    def check_requirement(self, requirement: str) -> str | None:
        """The problem of a recipe's requirement, and the remedy, as text; None where the requirement is met."""
        loaded = {plugin.distribution for plugin in self.plugins}
        return check_requirement(requirement, loaded, self.broken, self.no_plugins, self.disabled)

    def versions(self) -> dict[str, str]:
        """The versions of all plugins that work, by distribution; the version of a file is its hash."""
        return {loaded.distribution: loaded.version for loaded in self.plugins}

    def describe(self) -> list[dict[str, Any]]:
        """All plugins that work, as plain data: name, distribution, version, api, origin, entries, hooks and notes."""
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
        """Validate the options of an entry.

        Raises:
            PluginError: the options are wrong.
        """
        values = dict(options or {})
        try:
            return entry.options.model_validate(values)
        except ValidationError as error:
            problems = rewrite(error.errors(include_url=False), entry.options, values)
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

    @property
    def hook(self) -> Any:
        """Pluggy's hooks. Use `broadcast` for observers: it continues after one that raises."""
        return self._manager.hook

    def broadcast(self, hook_name: str, **kwargs: Any) -> None:
        """Call every observer of a hook; see `Observers.broadcast`."""
        self._observers.broadcast(hook_name, **kwargs)
