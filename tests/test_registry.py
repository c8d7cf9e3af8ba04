import importlib.metadata
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import BaseModel, Field

from rlhf_peft.errors import PluginError, RlhfPeftError
from rlhf_peft.hookspecs import REGISTERS, Options, hookimpl
from rlhf_peft.recipe.trl.names import RECIPE_KEYS
from rlhf_peft.registry import Registry

GOOD = """
from pydantic import Field
from rlhf_peft.plugin import Options, hookimpl

class Shaped:
    class Options(Options):
        target: int = Field(20, gt=0, description="Tokens wanted.")
    def __init__(self, options):
        self.options = options

@hookimpl
def rlhf_peft_register_rewards(register):
    register("shaped", Shaped)
"""

BROKEN = {
    "raises": ("raise RuntimeError('no luck')", "its import failed: RuntimeError: no luck"),
    "exits": ("import sys; sys.exit(3)", "its import failed: SystemExit: 3"),
    "syntax": ("def (", "its import failed: SyntaxError"),
    "nothing": ("x = 1", "nothing in it is marked with @hookimpl"),
    "signature": (
        "from rlhf_peft.plugin import hookimpl\n@hookimpl\ndef rlhf_peft_register_rewards(registry): pass",
        "a hook does not fit",
    ),
    "unknown_hook": (
        "from rlhf_peft.plugin import hookimpl\n@hookimpl\ndef rlhf_peft_register_reward(register): pass",
        "a hook does not fit",
    ),
    "major": (GOOD + "\nHOOK_API = 2", "it is written for HOOK_API 2; this rlhf-peft has 1"),
    "registering": (
        GOOD + "\n@hookimpl\ndef rlhf_peft_register_samplers(register): raise KeyError('x')",
        "registering its samplers failed: KeyError",
    ),
    "twice": (GOOD + '    register("shaped", Shaped)\n', "it registers rewards shaped twice"),
    "no_options": (
        GOOD.replace("    class Options(Options):\n", "    class Other(Options):\n"),
        "needs `Options`",
    ),
    "loose": (
        GOOD.replace("        target: int", '        model_config = {"extra": "allow"}\n        target: int'),
        "must forbid unknown keys",
    ),
    "hidden": (GOOD.replace("target: int", "weight: int"), "the recipe itself has the keys weight"),
    "bad_name": (GOOD.replace('"shaped"', '"a:b"'), "cannot name one of the rewards"),
    "wrapper": (
        GOOD + "\n@hookimpl(wrapper=True)\ndef rlhf_peft_run_start(run):\n    yield",
        "hooks here are plain functions",
    ),
}


def install(folder: Path, monkeypatch, **plugins: str) -> None:
    """Put distributions on the path, one a plugin, as pip would."""
    for name, code in plugins.items():
        (folder / f"{name}_module.py").write_text(code)
        info = folder / f"dist_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[rlhf_peft]\n{name} = {name}_module\n")
        monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def no_builtins(monkeypatch):
    """These tests are about the registry; what ships has its own."""
    monkeypatch.setattr("rlhf_peft.registry.core.builtins", list)


def plugin(name="thing", kind="rewards", **more):
    class Thing:
        class Options(Options):
            size: int = Field(1, gt=0, description="Of it.")

        def __init__(self, options):
            self.options = options

    @hookimpl
    def register_it(register):
        register(name, Thing)

    return SimpleNamespace(**{f"rlhf_peft_register_{kind}": register_it, **more})


def test_an_installed_plugin_works(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, good=GOOD)
    registry = Registry.load()
    assert registry.names("rewards") == ["shaped"]
    assert registry.make("rewards", "shaped", {"target": 5}).options.target == 5
    assert registry.make("rewards", "dist-good:shaped").options.target == 20
    assert registry.make("rewards", "Dist_Good:shaped").options.target == 20
    assert registry.broken == []
    assert registry.versions() == {"dist-good": "1.2"}
    assert registry.describe() == [
        {
            "name": "good",
            "distribution": "dist-good",
            "version": "1.2",
            "api": 1,
            "origin": "installed",
            "registers": {kind: ["shaped"] if kind == "rewards" else [] for kind in REGISTERS},
            "hooks": [],
            "notes": [],
        }
    ]
    assert Registry.load(no_plugins=True).names("rewards") == []


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_reported_and_leaves_nothing_while_others_load(tmp_path, monkeypatch, case):
    code, reason = BROKEN[case]
    good = GOOD.replace('"shaped"', '"fine"')
    install(tmp_path, monkeypatch, **{f"a{case}": code, "good": good})
    registry = Registry.load()
    (broken,) = registry.broken
    assert (broken.name, broken.distribution) == (f"a{case}", f"dist-a{case.replace('_', '-')}")
    assert reason in broken.reason
    assert "\n" not in str(broken)
    assert [loaded.name for loaded in registry.plugins] == ["good"]
    assert registry.names("rewards") == ["fine"]
    for hook in vars(registry.hook).values():
        assert all("dist-a" not in impl.plugin_name for impl in hook.get_hookimpls())


def test_what_a_hook_changes_in_the_process_is_put_back(tmp_path):
    file = tmp_path / "odd.py"
    changes = "    import os, torch\n    os.umask(0o777), torch.set_default_dtype(torch.float16)\n"
    file.write_text(GOOD.replace("    register(", f"{changes}    register("))
    before = os.umask(0o022)
    try:
        Registry.load([file], no_plugins=True)
        assert torch.get_default_dtype() == torch.float32 and os.umask(before) == 0o022
    finally:
        torch.set_default_dtype(torch.float32)
        os.umask(before)


def test_a_taken_name_is_refused_with_all_else_the_plugin_brings(tmp_path, monkeypatch):
    second = GOOD + '\n@hookimpl\ndef rlhf_peft_register_samplers(register):\n    register("new", Shaped)\n'
    install(tmp_path, monkeypatch, first=GOOD, second=second)
    registry = Registry.load()
    assert [str(broken) for broken in registry.broken] == [
        "plugin second (dist-second) was left out: the name shaped is taken: reward shaped (dist-first 1.2)"
    ]
    assert registry.names("samplers") == []


def test_requirements_of_a_recipe(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, good=GOOD, bad=BROKEN["raises"][0])
    registry = Registry.load()
    assert registry.check_requirement("dist-good>=1.0") is None
    assert registry.check_requirement("DIST_good") is None
    assert "pip install 'rlhf-peft-nowhere>=0.1'" in registry.check_requirement("rlhf-peft-nowhere>=0.1")
    assert registry.check_requirement("dist-good>=2") == (
        "dist-good 1.2 is installed. Change it: pip install 'dist-good>=2'"
    )
    assert "left out: its import failed: RuntimeError: no luck" in registry.check_requirement("dist-bad")
    assert "is no requirement" in registry.check_requirement("///")
    assert "never a URL" in registry.check_requirement("x @ https://host/x.zip")
    assert "no entry point of group rlhf_peft" in registry.check_requirement("pluggy")
    assert "--no-plugins" in Registry.load(no_plugins=True).check_requirement("dist-good")


def test_unknown_names_list_what_is_known_and_what_was_left_out(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, good=GOOD, bad="raise RuntimeError('no luck')")
    registry = Registry.load()
    with pytest.raises(
        PluginError, match=r"unknown reward 'shapd'\. Did you mean shaped\? Known: shaped\. Left out"
    ):
        registry.make("rewards", "shapd")
    with pytest.raises(PluginError, match="Known: none"):
        registry.options_model("samplers", "x")
    with pytest.raises(PluginError, match="unknown reward 'other:shaped'"):
        registry.make("rewards", "other:shaped")
    with pytest.raises(ValueError, match="unknown kind"):
        registry.names("wards")


def test_wrong_options_are_told_together():
    registry = Registry()
    registry.add(plugin(), "p", "dist", "0.1")
    with pytest.raises(PluginError) as caught:
        registry.make("rewards", "thing", {"size": -1, "sice": 2})
    assert str(caught.value) == (
        "reward thing (dist 0.1): sice: unknown key. Did you mean size?; "
        "size: expected a number greater than 0, found -1"
    )


def test_what_a_factory_raises_names_the_plugin():
    class Bad:
        class Options(Options):
            pass

        def __init__(self, options):
            raise OSError("no disk")

    @hookimpl
    def register(register):
        register("bad", Bad)

    registry = Registry()
    registry.add(SimpleNamespace(rlhf_peft_register_samplers=register), "p", "dist", "0.1")
    with pytest.raises(PluginError, match=r"sampler bad \(dist 0.1\) could not be made: OSError: no disk"):
        registry.make("samplers", "bad")


def test_a_plugin_in_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    registry = Registry.load([path])
    assert registry.make("rewards", "mine:shaped").options.target == 20
    assert registry.code_files == [path]
    (described,) = registry.describe()
    assert described["origin"] == "file"
    assert len(described["version"]) == 12
    with pytest.raises(PluginError, match="the name shaped is taken"):
        registry.add_file(path)


def test_a_file_named_on_the_command_line_must_work(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("1 / 0")
    with pytest.raises(PluginError, match=r"--plugin .*bad\.py: its import failed: ZeroDivisionError"):
        Registry.load([path])
    with pytest.raises(PluginError, match=r"gone\.py: no such file"):
        Registry.load([tmp_path / "gone.py"])


class Function:
    """Stands in for the built-in that calls functions."""

    class Options(Options):
        pass

    def __init__(self, options, function, name):
        self.function, self.name = function, name


def test_a_function_of_a_file_is_a_reward(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(
        "from math import floor\nX = 3\ndef short(completions, **_): return [1.0]\ndef long(): pass\n"
    )
    registry = Registry()
    assert registry.add_reward_function(path, "short", Function) == "short"
    assert registry.add_reward_function(str(path), "long", Function) == "long"
    reward = registry.make("rewards", "rewards:short")
    assert (reward.name, reward.function([])) == ("short", [1.0])
    assert registry.code_files == [path]
    with pytest.raises(
        PluginError, match=r"has no function shrt\. Did you mean short\? It has: long, short\."
    ):
        registry.add_reward_function(path, "shrt", Function)
    with pytest.raises(PluginError, match="has no function X"):
        registry.add_reward_function(path, "X", Function)
    with pytest.raises(PluginError, match="the name short is taken"):
        registry.add_reward_function(path, "short", Function)


def listener(name, heard, fail=None):
    @hookimpl
    def rlhf_peft_step_end(step):
        heard.append((name, step))
        if fail:
            raise fail

    return SimpleNamespace(rlhf_peft_step_end=rlhf_peft_step_end)


def tell(registry, step):
    registry.broadcast("rlhf_peft_step_end", run=None, stage="rl", step=step, metrics={})


def test_an_observer_that_raises_does_not_end_a_run_and_is_switched_off_after_three_times(caplog):
    registry, heard = Registry(), []
    registry.add(listener("good", heard), "good")
    registry.add(listener("bad", heard, fail=ValueError("oh")), "bad")
    with caplog.at_level(logging.WARNING, logger="rlhf_peft.registry"):
        for step in range(5):
            tell(registry, step)
    assert [step for name, step in heard if name == "good"] == [0, 1, 2, 3, 4]
    assert [step for name, step in heard if name == "bad"] == [0, 1, 2]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert told[0] == "plugin rlhf-peft:bad raised in rlhf_peft_step_end: ValueError: oh"
    assert told[2].endswith("That was the third time: it is switched off.")
    assert registry.describe()[0]["hooks"] == ["rlhf_peft_step_end"]


def test_strict_plugins_ends_the_run():
    registry = Registry(strict_plugins=True)
    registry.add(listener("bad", [], fail=ValueError("oh")), "bad")
    with pytest.raises(RlhfPeftError, match="ValueError: oh") as caught:
        tell(registry, 1)
    assert caught.value.exit_code == 1


def test_interrupts_pass_through_observers():
    registry = Registry()
    registry.add(listener("bad", [], fail=KeyboardInterrupt()), "bad")
    with pytest.raises(KeyboardInterrupt):
        tell(registry, 1)


def test_options_of_everything():
    registry = Registry()
    registry.add(plugin("a", "samplers"), "p")
    options = registry.options()
    assert set(options) == set(REGISTERS)
    assert issubclass(options["samplers"]["a"], BaseModel)


def test_what_ships_loads(monkeypatch):
    monkeypatch.undo()
    registry = Registry.load(no_plugins=True)
    assert {"ppo"} <= set(registry.names("algorithms"))
    assert {"cached"} <= set(registry.names("samplers"))
    assert {"learned"} <= set(registry.names("rewards"))
    assert all(loaded.distribution == "rlhf-peft" for loaded in registry.plugins)
    for theirs, ours in RECIPE_KEYS.items():
        section, leaf = ours.split(".")[-2:] if "." in ours else ("", ours)
        for word, kind, name in (("algorithm", "algorithms", "ppo"), ("sampler", "samplers", "cached")):
            assert section != word or leaf in registry.options_model(kind, name).model_fields, theirs
    for kind, names in registry.options().items():
        for name, model in names.items():
            assert all(field.description for field in model.model_fields.values()), f"{kind} {name}"
