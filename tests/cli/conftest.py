"""Fixtures that the tests of the command line share."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import rlhf_peft

from .cli_support import RECIPE
from .plugins_support import REWARD


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Put a distribution on the path, as pip would: its modules, and its entry points by group."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(str(place))

    def install(name, modules, groups):
        for module, code in modules.items():
            path = place / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
            monkeypatch.delitem(sys.modules, module, raising=False)
        info = place / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
            for group, points in groups.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        return place

    return install


@pytest.fixture
def letters(installed):
    return installed("dist-letters", {"h3_letters": REWARD}, {"rlhf_peft": {"abc": "h3_letters"}})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def api(monkeypatch):
    """A run that trains nothing and remembers how it was called."""
    calls = []

    def run(recipe, **options):
        calls.append((recipe, options))
        return SimpleNamespace(folder=Path("runs/small"), stages={}, seconds=1.0)

    fake = SimpleNamespace(run=run, calls=calls, check_data=lambda recipe, registry: ["sft: 3 rows"])
    monkeypatch.setitem(sys.modules, "rlhf_peft.api", fake)
    monkeypatch.setattr(rlhf_peft, "api", fake, raising=False)
    return fake
