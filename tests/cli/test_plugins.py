"""`rlhf-peft plugins`, plugins' commands and recipes, in this process; tests/plugins installs for real."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rlhf_peft import cli, entry_points
from rlhf_peft.errors import UsageError
from rlhf_peft.packages import KINDS, Change, Installer, installer, write
from rlhf_peft.packages.template import module_name, registered_name
from rlhf_peft.recipe import shipped

REWARD = '''
"""Counts letters."""
import torch
from pydantic import Field
from rlhf_peft.plugin import Options, Scores, hookimpl

class Letters:
    """Longer is better."""
    class Options(Options):
        """How much."""
        scale: float = Field(1.0, gt=0, description="Of a letter.")
    roles, timeout = (), None
    def __init__(self, options):
        self.scale = options.scale
    async def score(self, batch):
        return Scores(row=self.scale * torch.tensor([float(len(t)) for t in batch.texts]))

@hookimpl
def rlhf_peft_register_rewards(register):
    register("letters", Letters)

@hookimpl
def rlhf_peft_run_end(run):
    pass
'''


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


def listed(capsys):
    assert cli.execute(["plugins", "list", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_list_tells_what_each_registers_and_listens_to(letters, capsys):
    row = listed(capsys)["abc"]
    assert (row["distribution"], row["version"], row["api"], row["status"]) == (
        "dist-letters",
        "1.2",
        1,
        "ok",
    )
    assert row["registers"]["rewards"] == ["letters"] and row["hooks"] == ["rlhf_peft_run_end"]
    assert cli.execute(["plugins", "list"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("abc ")]
    assert line.split() == ["abc", "dist-letters", "1.2", "1", "reward", "letters", "run_end"]
    assert cli.execute(["plugins", "list", "--requirements"]) == 0
    assert capsys.readouterr().out == "dist-letters==1.2\n"
    assert cli.execute(["--no-plugins", "plugins", "list", "--requirements"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("names", ["dist-letters", "Dist_Letters , x", "abc", "ALL"])
def test_the_environment_variable_leaves_plugins_out(letters, capsys, monkeypatch, names):
    monkeypatch.setenv("RLHF_PEFT_DISABLE_PLUGINS", names)
    row = listed(capsys)["dist-letters"]
    assert row["status"] == "disabled" and "h3_letters" not in sys.modules
    assert cli.execute(["plugins", "list"]) == 0
    assert "disabled: dist-letters (dist-letters 1.2)" in capsys.readouterr().out
    from rlhf_peft.registry import Registry

    assert "RLHF_PEFT_DISABLE_PLUGINS leaves it out" in Registry.load().check_requirement("dist-letters")


def test_another_name_leaves_nothing_out(letters, capsys, monkeypatch):
    monkeypatch.setenv("RLHF_PEFT_DISABLE_PLUGINS", "letters")
    assert listed(capsys)["abc"]["status"] == "ok"


@pytest.mark.parametrize("name", ["abc", "dist-letters", "letters", "dist-letters:letters"])
def test_show(letters, capsys, name):
    assert cli.execute(["plugins", "show", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith("abc: dist-letters 1.2, API 1, installed\n  Counts letters.\n")
    assert "  reward letters: Longer is better.\n    scale = 1.0  Of a letter.\n" in out
    assert cli.execute(["plugins", "show", name, "--markdown"]) == 0
    assert "## Reward `letters`" in (page := capsys.readouterr().out)
    assert "| `scale` | number > 0 | `1` | Of a letter. |" in page


def test_show_of_one_built_in_shows_that_alone(capsys):
    assert cli.execute(["plugins", "show", "ppo"]) == 0
    out = capsys.readouterr().out
    assert "algorithm ppo" in out and "grpo" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nothing"], "no plugin 'nothing'. Known: "),
        (["check", "nothing"], "is no file, no folder and no plugin"),
        (["check", "."], "pyproject.toml: cannot be read"),
        (["check", "ppo", "beta=1"], "expected NAME.KEY=VALUE"),
        (["install"], "nothing to install"),
        (["uninstall", "pytest"], "no plugin 'pytest' is installed"),
        (
            ["new", "x", "--kind", "dragon"],
            "--kind dragon: expected reward, sampler, algorithm, environment, quantizer, observer",
        ),
        (["new", "-x-", "--kind", "reward"], "No such option"),
        (["new", "a b", "--kind", "reward"], "'a b' is no name of a package"),
        (["new", "json", "--kind", "reward"], "no module can be called json. Try rlhf-peft-json."),
        (["new", "3d", "--kind", "reward"], "no module can be called 3d"),
        (["new", "../up", "--kind", "reward"], "is no name of a package"),
    ],
)
def test_usage_errors(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert cli.execute(["plugins", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and told in err
    assert list(tmp_path.iterdir()) == []


def test_check_a_file_a_folder_and_what_is_installed(letters, tmp_path, capsys):
    one = "ok      reward letters\n"
    assert cli.execute(["plugins", "check", "letters"]) == 0
    assert capsys.readouterr().out == one
    file = tmp_path / "mine.py"
    file.write_text(REWARD)
    assert cli.execute(["plugins", "check", str(file), "letters.scale=2"]) == 0
    assert capsys.readouterr().out == f"ok      hook rlhf_peft_run_end\n{one}"
    assert cli.execute(["plugins", "check", str(file), "letters.scale=-2"]) == 0
    assert "skipped reward letters: its options need a value: scale" in capsys.readouterr().out
    file = tmp_path / "wrong.py"
    file.write_text(REWARD.replace("for t in batch.texts]", "for t in batch.texts[1:]]"))
    assert cli.execute(["plugins", "check", str(file)]) == 1
    assert (
        "FAILED  reward letters: reward Letters gave scores (3,) for 4 completions" in capsys.readouterr().out
    )


def test_every_kind_of_new_package_passes_its_own_tests_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        assert cli.execute(["plugins", "new", f"rlhf-peft-new-{kind}", "--kind", kind]) == 0
        out, err = capsys.readouterr()
        assert all((tmp_path / line).is_file() for line in out.splitlines()) and len(out.splitlines()) == 6
        assert err.startswith("next: ")
    packages = sorted(tmp_path.iterdir())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            "-c",
            "pytest.ini",
        ]
        + [str(path / "tests") for path in packages],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for path in packages:
        workflow = yaml.safe_load((path / ".github" / "workflows" / "test.yml").read_text())
        assert len(workflow["jobs"]["test"]["strategy"]["matrix"]["core"]) == 2
        assert "__" not in (path / "pyproject.toml").read_text() + (path / "README.md").read_text()
        for linter in ("check", "--select=E,F,I,B,UP,SIM,RUF"), ("format", "--check"):
            ruff = [sys.executable, "-m", "ruff", *linter, "--line-length=120", "--no-cache", "."]
            told = subprocess.run(ruff, capture_output=True, text=True, timeout=60, check=False, cwd=path)
            assert told.returncode == 0, told.stdout


def test_new_never_overwrites(tmp_path, capsys):
    files = write("rlhf-peft-x", "reward", tmp_path / "x")
    text = files[0].read_text()
    with pytest.raises(UsageError, match="there already"):
        write("rlhf-peft-x", "sampler", tmp_path / "x")
    assert files[0].read_text() == text
    assert (
        cli.execute(["plugins", "new", "rlhf-peft-length", "--kind", "reward", "--dest", str(tmp_path / "y")])
        == 0
    )
    warned = "the reward length is there already" in capsys.readouterr().err
    assert cli.execute(["schema", "rewards.length"]) == (0 if warned else 2)


def test_names():
    assert module_name("RLHF.Peft--Short") == "rlhf_peft_short"
    assert registered_name("rlhf_peft_Short") == "short"


# --- commands and recipes ---


def test_a_plugins_command_is_imported_when_it_is_used(installed, capsys):
    code = (
        "print('noise')\nimport typer\napp = typer.Typer()\n@app.command()\ndef hi(n: int = 1):\n    print('hi' * n)\n"
        "@app.command()\ndef ho():\n    raise typer.Exit(4)\n"
    )
    installed(
        "dist-cmd", {"h3_cmd": code}, {"rlhf_peft.commands": {"greet": "h3_cmd:app", "schema": "h3_cmd:app"}}
    )
    assert cli.execute(["--help"]) == 0
    out, err = capsys.readouterr()
    assert "greet" in out and "From the plugin dist-cmd 1.2." in out and err == ""
    assert "h3_cmd" not in sys.modules
    assert cli.execute(["greet", "hi", "--n", "2"]) == 0
    assert capsys.readouterr() == ("hihi\n", "noise\n")
    assert cli.execute(["greet", "ho"]) == 4
    assert cli.execute(["greet", "--help"]) == 0
    assert "Usage: rlhf-peft greet" in capsys.readouterr().out
    assert cli.execute(["greet", "hi", "--n", "two"]) == 2
    assert "See rlhf-peft greet hi --help" in capsys.readouterr().err
    assert cli.execute(["schema", "ppo"]) == 0
    assert "beta" in capsys.readouterr().out


@pytest.mark.parametrize(
    "code", ["raise SystemExit(0)", "class E(BaseException): pass\nraise E", "app = 3", "x = 1", "def ("]
)
def test_a_broken_command_is_an_error_only_when_it_is_used(installed, capsys, code):
    installed("dist-bad", {"h3_bad": code}, {"rlhf_peft.commands": {"bad": "h3_bad:app"}})
    assert cli.execute(["--help"]) == 0
    assert " bad " in capsys.readouterr().out
    assert cli.execute(["bad"]) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("error: command bad (dist-bad 1.2): its import failed: ")
        and "The other commands work." in err
    )


def test_help_is_fast():
    """At most two and a half times what typer alone takes, in processor time: machines differ, and may be busy."""
    ours = "from rlhf_peft.cli import execute\nexecute(['--help'])"
    typer = "import typer\napp = typer.Typer()\napp.command()(print)\napp(['--help'], standalone_mode=False)"
    times = {}
    for code in (ours, typer):
        command = [sys.executable, "-c", f"import time\n{code}\nprint(time.process_time())"]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
        times[code] = min(float(done.stdout.splitlines()[-1]) for done in runs)
    assert times[ours] < 2.5 * times[typer]


def test_a_package_of_recipes_is_listed_and_never_imported(installed, capsys):
    place = installed(
        "dist-book",
        {"h3_book/__init__": "raise RuntimeError('imported')", "h3_book/more/__init__": ""},
        {"rlhf_peft.recipes": {"book": "h3_book.more", "gone": "h3_nowhere.x"}},
    )
    text = "# A small one.\nversion: 1\nname: small\n"
    (place / "h3_book" / "more" / "small.yaml").write_text(text)
    assert shipped.names()[-1] == "dist-book:small"
    assert cli.execute(["recipes", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=1) == ["dist-book:small", "A small one."]
    assert cli.execute(["recipes", "show", "dist-book:small"]) == 0
    assert capsys.readouterr().out == text
    assert cli.execute(["recipes", "show", "dist-book:smal"]) == 2
    assert "Did you mean dist-book:small?" in capsys.readouterr().err


def test_recipes_of_a_disabled_plugin_are_not_listed(installed, monkeypatch):
    place = installed("dist-book", {"h3_book/__init__": ""}, {"rlhf_peft.recipes": {"book": "h3_book"}})
    (place / "h3_book" / "small.yaml").write_text("version: 1\n")
    assert "dist-book:small" in shipped.names()
    monkeypatch.setenv("RLHF_PEFT_DISABLE_PLUGINS", "dist-book")
    assert "dist-book:small" not in shipped.names()


@pytest.mark.parametrize("kind", ["own", "backport", "without metadata"])
def test_damaged_metadata_is_survived(tmp_path, monkeypatch, capsys, kind):
    # The package of that name, which mlflow imports, takes the place of Python's own, and raises, or gives None.
    if kind == "backport":
        pytest.importorskip("importlib_metadata")
    if kind == "without metadata":
        monkeypatch.setattr(importlib.metadata.PathDistribution, "metadata", None)
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("")
    (info / "entry_points.txt").write_text("[rlhf_peft]\nodd = h3_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    row = listed(capsys)["odd"]
    assert row["status"] == "broken" and "ModuleNotFoundError" in row["reason"]
    assert [point.name for point in entry_points.points("rlhf_peft") if point.name == "odd"] == ["odd"]


# --- installing ---


class Fake:
    """pip or uv, as far as its output goes."""

    def __init__(self, monkeypatch, stdout="", stderr="", code=0, report=()):
        self.calls = []
        self.stdout, self.stderr, self.code, self.report = stdout, stderr, code, report
        monkeypatch.setattr(installer, "subprocess", SimpleNamespace(run=self, CompletedProcess=None))

    def __call__(self, command, **options):
        self.calls.append(command)
        if "--constraint" in command:
            self.constraints = Path(command[command.index("--constraint") + 1]).read_text().split()
        if "--report" in command:
            items = [{"metadata": {"name": n, "version": v}} for n, v in self.report]
            Path(command[command.index("--report") + 1]).write_text(json.dumps({"install": items}))
        return SimpleNamespace(returncode=self.code, stdout=self.stdout, stderr=self.stderr)


@pytest.fixture
def pip(monkeypatch):
    monkeypatch.setattr(installer, "is_uv_environment", lambda: False)


def test_install_shows_what_changes_and_asks(pip, monkeypatch, capsys):
    fake = Fake(monkeypatch, report=[("rlhf-peft-x", "1.0"), ("pluggy", "99")])
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert cli.execute(["plugins", "install", "rlhf-peft-x"]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == "+ rlhf-peft-x 1.0" and out.startswith("~ pluggy ") and "-> 99" in out
    assert "there is no terminal to ask on. Say --yes." in err and len(fake.calls) == 1
    for answer, code, calls in (("n\n", 2, 2), ("\n", 2, 3), ("y\n", 0, 5)):
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stdin", terminal)
        assert cli.execute(["plugins", "install", "rlhf-peft-x"]) == code
        assert len(fake.calls) == calls
    assert "--dry-run" in fake.calls[3] and "--dry-run" not in fake.calls[4]
    assert {word.split("==")[0] for word in fake.constraints} == set(installer.PROTECTED)
    capsys.readouterr()
    assert cli.execute(["plugins", "install", "rlhf-peft-x", "--yes"]) == 0


def test_a_plan_that_replaces_torch_is_refused_even_if_pip_would(pip, monkeypatch, capsys):
    fake = Fake(monkeypatch, report=[("torch", "1.0")])
    assert cli.execute(["plugins", "install", "rlhf-peft-x", "--yes"]) == 2
    assert "would replace torch 2" in capsys.readouterr().err and len(fake.calls) == 1


def test_install_what_a_recipe_requires(pip, tmp_path, monkeypatch, capsys):
    fake = Fake(monkeypatch)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("version: 1\nplugins:\n  - rlhf-peft-x>=0.1,<2\n")
    assert cli.execute(["plugins", "install", "-r", str(recipe)]) == 0
    assert fake.calls[0][-1] == "rlhf-peft-x>=0.1,<2"
    assert "installed already" in capsys.readouterr().err
    for text, told in (
        ("plugins: [x @ https://host/x.zip]", "never a URL"),
        ("plugins: 3", "expected a list"),
        ("plugins: ['--pre']", "is no requirement"),
    ):
        recipe.write_text(text)
        assert cli.execute(["plugins", "install", "-r", str(recipe)]) == 2
        assert told in capsys.readouterr().err
    recipe.write_text("version: 1\n")
    assert cli.execute(["plugins", "install", "-r", str(recipe)]) == 0
    assert "requires no plugins" in capsys.readouterr().err and len(fake.calls) == 1


def test_uninstall_asks_and_removes_the_distribution(letters, pip, monkeypatch, capsys):
    fake = Fake(monkeypatch)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.execute(["plugins", "uninstall", "abc"]) == 2
    assert fake.calls == [] and "Say --yes" in capsys.readouterr().err
    assert cli.execute(["plugins", "uninstall", "abc", "-y"]) == 0
    assert fake.calls[0][-1] == "dist-letters" and "h3_letters" not in sys.modules


def test_uvs_environment_is_changed_by_uv(monkeypatch):
    monkeypatch.setattr(installer, "is_uv_environment", lambda: True)
    monkeypatch.setattr(installer.shutil, "which", lambda name: "/bin/uv")
    told = "Would install 3 packages\n - pluggy==1.0\n + pluggy==9.0\n + rlhf-peft-x==0.1.0\n ~ y @ file:///tmp/y\n"
    fake = Fake(monkeypatch, stderr=told)
    changes = Installer().plan(["rlhf-peft-x", "./y"])
    assert [change.name for change in changes] == ["pluggy", "rlhf-peft-x", "y"]
    assert str(changes[1]) == "+ rlhf-peft-x 0.1.0" and str(changes[2]) == "+ y file:///tmp/y"
    assert fake.calls[0][:3] == ["/bin/uv", "pip", "install"] and sys.executable in fake.calls[0]
    Installer().uninstall("y")
    assert fake.calls[1] == ["/bin/uv", "pip", "uninstall", "--python", sys.executable, "y"]
    monkeypatch.setattr(installer.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="no pip and uv is not on the path"):
        Installer()


def test_whose_environment_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(installer.sys, "prefix", str(tmp_path))
    assert not installer.is_uv_environment()
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.1\n")
    assert installer.is_uv_environment()
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin/uv = 3\n")
    assert not installer.is_uv_environment()


def test_changes_in_words():
    assert [str(Change("a", "2", old)) for old in (None, "1", "2")] == [
        "+ a 2",
        "~ a 1 -> 2",
        "~ a 2 -> 2 (again)",
    ]
