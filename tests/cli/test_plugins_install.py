"""`rlhf-peft plugins install` and `uninstall`, with a stand-in for pip and uv; tests/plugins installs for real."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_peft import cli
from rlhf_peft.errors import UsageError
from rlhf_peft.packages import Change, Installer, installer


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
    for text, message in (
        ("plugins: [x @ https://host/x.zip]", "never a URL"),
        ("plugins: 3", "expected a list"),
        ("plugins: ['--pre']", "is no requirement"),
    ):
        recipe.write_text(text)
        assert cli.execute(["plugins", "install", "-r", str(recipe)]) == 2
        assert message in capsys.readouterr().err
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
    uv_output = "Would install 3 packages\n - pluggy==1.0\n + pluggy==9.0\n + rlhf-peft-x==0.1.0\n ~ y @ file:///tmp/y\n"
    fake = Fake(monkeypatch, stderr=uv_output)
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
