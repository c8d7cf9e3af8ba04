"""Installs and removes plugins with pip, or with `uv pip` in an environment of uv; protected packages stay as they are.

Every change is planned first, in a dry run with the installed versions of `PROTECTED` as constraints. For environments,
indexes and credentials pip and uv have their own settings.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from ..errors import UsageError

PROTECTED = ("torch", "transformers", "peft", "bitsandbytes")
"""Packages that installing a plugin never replaces: results depend on their versions."""


@dataclass(frozen=True)
class Change:
    """One distribution that would be installed.

    Attributes:
        name: canonical name of the distribution.
        new: version that would be installed.
        old: version that is installed, or None.
    """

    name: str
    new: str
    old: str | None

    def __str__(self) -> str:
        """The change as text: `+ name 1.0`, or `~ name 1.0 -> 1.1`."""
        if self.old is None:
            return f"+ {self.name} {self.new}"
        return f"~ {self.name} {self.old} -> {self.new}{' (again)' if self.old == self.new else ''}"


class Installer:
    """Installs and removes packages in the environment that runs this program.

    Raises:
        UsageError: it has neither pip nor uv.
    """

    def __init__(self) -> None:
        self.uv = is_uv_environment()
        uv = shutil.which("uv") if self.uv else None
        if self.uv and uv is None:
            raise UsageError(
                f"{sys.prefix}: this environment has no pip and uv is not on the path. Install one of them, or install "
                "the plugin with the tool that made this environment."
            )
        self.command = [uv, "pip"] if uv else [sys.executable, "-m", "pip", "--disable-pip-version-check"]

    def plan(self, specs: Sequence[str]) -> list[Change]:
        """The changes that installing would make; nothing is changed.

        Args:
            specs: requirements, archives or folders, as pip takes them.

        Raises:
            UsageError: it cannot be done, or only by replacing one of `PROTECTED`.
        """
        _refuse_options(specs)
        with _constraints() as (file, pins):
            report = file.with_name("report.json")
            dry = ["--dry-run"] if self.uv else ["--dry-run", "--report", str(report)]
            done = self._run("install", *dry, *self._environment_options(), "--constraint", str(file), *specs)
            if done.returncode:
                raise UsageError(_refusal(specs, f"{done.stdout}\n{done.stderr}", pins))
            changes = _read_uv(done.stderr) if self.uv else _read_report(report.read_text(encoding="utf-8"))
        replaced = [change for change in changes if change.name in pins and change.new != pins[change.name]]
        if replaced:
            raise UsageError(
                f"{' '.join(specs)}: would replace {_listed(pins, [c.name for c in replaced])}. {_WHY}"
            )
        return changes

    def install(self, specs: Sequence[str]) -> None:
        """Install packages, under the same constraints as the plan.

        Raises:
            UsageError: pip failed.
        """
        _refuse_options(specs)
        with _constraints() as (file, pins):
            done = self._run("install", *self._environment_options(), "--constraint", str(file), *specs)
        if done.returncode:
            raise UsageError(_refusal(specs, f"{done.stdout}\n{done.stderr}", pins))

    def uninstall(self, name: str) -> None:
        """Remove a distribution, but not its dependencies.

        Raises:
            UsageError: pip failed.
        """
        _refuse_options([name])
        yes = [] if self.uv else ["--quiet", "--yes"]
        done = self._run("uninstall", *yes, *self._environment_options(), name)
        if done.returncode:
            raise UsageError(f"{name}: {_last_error(done.stderr)}")

    def _environment_options(self) -> list[str]:
        return ["--python", sys.executable] if self.uv else []

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)


def is_uv_environment() -> bool:
    """Whether the environment was made by uv, or has no pip."""
    try:
        settings = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        settings = ""
    return bool(re.search(r"^uv\s*=", settings, re.MULTILINE)) or importlib.util.find_spec("pip") is None


_WHY = (
    "A plugin never replaces what the trainer stands on. Ask its author for a version that fits, or give the plugin an "
    "environment of its own."
)


@contextmanager
def _constraints() -> Iterator[tuple[Path, dict[str, str]]]:
    """A temporary file of constraints with the installed versions of `PROTECTED`, and these versions by name."""
    pins: dict[str, str] = {}
    for name in PROTECTED:
        try:
            pins[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        yield file, pins


def _refuse_options(specs: Sequence[str]) -> None:
    for spec in specs:
        if spec.startswith("-") or not spec.strip():
            raise UsageError(
                f"{spec!r} is no package. Give names with versions, archives or folders: 'rlhf-peft-x>=0.1' or ./x."
            )


def _refusal(specs: Sequence[str], output: str, pins: dict[str, str]) -> str:
    """The reason why pip or uv refused, in one paragraph."""
    what = " ".join(specs)
    named = [name for name in pins if re.search(rf"(?<![\w-]){name}(?![\w-])", output)]
    if named and re.search(r"conflict|constraint|unsatisfiable", output, re.IGNORECASE):
        wants = re.findall(rf"(\S+(?: \S+)? depends on (?:{'|'.join(named)})[^\n]*)", output)
        why = f" ({wants[0].strip()})" if wants else ""
        return f"{what}: would replace the installed {_listed(pins, named)}{why}. {_WHY}"
    return f"{what}: {_last_error(output)}"


def _listed(pins: dict[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {pins[name]}" for name in names)


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error|×", line, re.IGNORECASE)]
    return " ".join(errors or lines[-1:]) or "it failed and did not say why"


def _read_report(report: str) -> list[Change]:
    """The changes in pip's JSON report."""
    items = json.loads(report)["install"]
    return sorted(
        (_change(item["metadata"]["name"], item["metadata"]["version"]) for item in items),
        key=lambda c: c.name,
    )


def _read_uv(output: str) -> list[Change]:
    """The changes in the output of uv, whose lines are ` + name==1.0` or ` + name @ file:///...`."""
    lines = re.findall(r"^ \+ ([A-Za-z0-9._-]+)(?:==(\S+)| @ (\S+))", output, re.MULTILINE)
    lines += re.findall(r"^ ~ ([A-Za-z0-9._-]+)(?:==(\S+)| @ (\S+))", output, re.MULTILINE)
    return sorted((_change(name, version or place) for name, version, place in lines), key=lambda c: c.name)


def _change(name: str, version: str) -> Change:
    try:
        old = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        old = None
    return Change(canonicalize_name(name), version, old)
