"""Texts that `rlhf-peft plugins` prints: the table, the page of one plugin, the results of a check."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import PluginError, UsageError
from ..recipe.document import section as options_section

if TYPE_CHECKING:
    from ..registry import Entry, LoadedPlugin, Registry
    from ..testing import Finding

Row = dict[str, Any]


def as_rows(registry: Registry) -> list[Row]:
    """One mapping for each plugin: `status` is ok, broken (with `reason`) or disabled."""
    rows: list[Row] = [{**row, "status": "ok", "reason": None} for row in registry.describe()]
    nothing: Row = {"api": None, "origin": "installed", "registers": {}, "hooks": [], "notes": []}
    for broken in registry.broken:
        identity = {"name": broken.name, "distribution": broken.distribution, "version": broken.version}
        rows.append({**identity, **nothing, "status": "broken", "reason": broken.reason})
    for name in dict.fromkeys(registry.disabled):
        identity = {"name": name, "distribution": name, "version": _version(name)}
        reason = "RLHF_PEFT_DISABLE_PLUGINS names it"
        rows.append({**identity, **nothing, "status": "disabled", "reason": reason})
    return rows


def as_table(rows: Sequence[Row]) -> str:
    """A table of the plugins that work, and a line for each plugin that was left out."""
    head = ("PLUGIN", "DISTRIBUTION", "VERSION", "API", "REGISTERS", "LISTENS TO")
    body = [
        (r["name"], r["distribution"], r["version"], str(r["api"]), _registers(r), _hooks(r))
        for r in rows
        if r["status"] == "ok"
    ]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    lines = [
        "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *body)
    ]
    for row in rows:
        if row["status"] != "ok":
            who = f"{row['name']} ({row['distribution']} {row['version']})"
            lines.append(f"{row['status']}: {who}: {row['reason']}")
        for note in row["notes"]:
            lines.append(f"note: {row['name']} {note} as it was imported")
    return "\n".join(lines)


def requirement_lines(rows: Sequence[Row]) -> list[str]:
    """`name==version` of every installed distribution that works."""
    installed = {
        (row["distribution"], row["version"])
        for row in rows
        if row["status"] == "ok" and row["origin"] == "installed"
    }
    return [f"{distribution}=={version}" for distribution, version in sorted(installed)]


def page(registry: Registry, name: str, *, markdown: bool) -> str:
    """The page of the plugins with this name or distribution, or that register something of this name.

    Raises:
        PluginError: there is none; the message lists the known names.
    """
    for row in as_rows(registry):
        if row["status"] != "ok" and name in (row["name"], row["distribution"]):
            return f"{row['name']} ({row['distribution']} {row['version']}) is {row['status']}: {row['reason']}\n"
    plugins = [loaded for loaded in registry.plugins if _matches(loaded, name)]
    if not plugins:
        known = sorted(
            {row["distribution"] for row in as_rows(registry)} | {row["name"] for row in as_rows(registry)}
        )
        raise PluginError(f"no plugin {name!r}. Known: {', '.join(known)}; and whatever they register.")
    write = _as_markdown if markdown else _as_text
    return "\n".join(write(loaded, _entries_to_show(loaded, name)) for loaded in plugins)


def _matches(loaded: LoadedPlugin, name: str) -> bool:
    distribution, colon, short = name.rpartition(":")
    if colon and distribution != loaded.distribution:
        return False
    return short in (loaded.name, loaded.distribution, *(entry.name for entry in loaded.entries))


def _entries_to_show(loaded: LoadedPlugin, name: str) -> list[Entry]:
    """All entries of a plugin if the name is the plugin's; otherwise only the entry with that name."""
    short = name.rpartition(":")[2]
    if short in (loaded.name, loaded.distribution):
        return loaded.entries
    return [entry for entry in loaded.entries if entry.name == short]


def _as_markdown(loaded: LoadedPlugin, entries: Sequence[Entry]) -> str:
    parts = [f"# {loaded.distribution} {loaded.version}", "", _about(loaded), ""]
    for entry in entries:
        about = _first_line(entry.factory)
        parts.append(
            options_section(
                f"{_word(entry)} `{entry.name}`", about, entry.options, entry.options.model_fields
            )
        )
    return "\n".join(parts)


def _as_text(loaded: LoadedPlugin, entries: Sequence[Entry]) -> str:
    lines = [f"{loaded.name}: {loaded.distribution} {loaded.version}, API {loaded.api}, {loaded.origin}"]
    if _about(loaded):
        lines.append(f"  {_about(loaded)}")
    if loaded.hooks:
        lines.append(f"  listens to: {', '.join(loaded.hooks)}")
    for entry in entries:
        lines += ["", f"  {_word(entry).lower()} {entry.name}: {_first_line(entry.factory)}".rstrip(": ")]
        for key, field in entry.options.model_fields.items():
            default = (
                "required" if field.is_required() else f"{field.get_default(call_default_factory=True)!r}"
            )
            lines.append(f"    {field.alias or key} = {default}  {field.description or ''}".rstrip())
    return "\n".join([*lines, ""])


def check_findings(
    plugin: str, options: Mapping[str, Mapping[str, Any]], registry: Callable[[], Registry]
) -> list[Finding]:
    """Check a plugin in a file, in a package's folder, or an installed one, and return all findings.

    Raises:
        PluginError: there is no such plugin, or it cannot be registered.
    """
    from ..testing.plugins import check_entries, check_plugin

    path = Path(plugin)
    if path.is_file() or path.is_dir():
        findings = []
        for name, module in _modules(path).items():
            findings += check_plugin(module, options, name=name)
        return findings
    loaded = registry()
    reasons = [broken for broken in loaded.broken if plugin in (broken.name, broken.distribution)]
    if reasons:
        raise PluginError(f"{reasons[0]}")
    entries = [
        entry
        for owner in loaded.plugins
        if _matches(owner, plugin)
        for entry in _entries_to_show(owner, plugin)
    ]
    if not entries and not any(_matches(owner, plugin) for owner in loaded.plugins):
        raise PluginError(f"{plugin!r} is no file, no folder and no plugin that is installed.")
    return list(check_entries(entries, options))


def _modules(path: Path) -> dict[str, Any]:
    """Import the modules of a file or of a package's folder; returns them by name."""
    from ..packages.source import entry_modules, import_path
    from ..registry import import_safely, load_file

    if path.is_file():
        return {path.stem: load_file(path)}
    module_names = entry_modules(path)
    sys.path.insert(0, str(import_path(path).resolve()))
    return {
        name: import_safely(partial(importlib.import_module, module)) for name, module in module_names.items()
    }


def read_options(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse `name.key=value` words into a mapping from name to key to value.

    Raises:
        UsageError: a word has another form.
    """
    options: dict[str, dict[str, Any]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        name, dot, option = key.rpartition(".")
        if not (equals and dot and name and option):
            raise UsageError(f"{word}: expected NAME.KEY=VALUE, such as brevity.target=20.")
        options.setdefault(name, {})[option] = yaml.safe_load(value)
    return options


def _registers(row: Row) -> str:
    parts = (
        f"{kind.removesuffix('s')} {', '.join(names)}" for kind, names in row["registers"].items() if names
    )
    return "; ".join(parts) or "-"


def _hooks(row: Row) -> str:
    return ", ".join(name.removeprefix("rlhf_peft_") for name in row["hooks"]) or "-"


def _word(entry: Entry) -> str:
    return entry.kind.removesuffix("s").capitalize()


def _about(loaded: LoadedPlugin) -> str:
    return (getattr(loaded.module, "__doc__", None) or "").strip().split("\n")[0]


def _first_line(thing: Any) -> str:
    return (getattr(thing, "__doc__", None) or "").strip().split("\n")[0]


def _version(name: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
