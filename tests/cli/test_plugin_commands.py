"""Commands and recipes that plugins bring."""

import subprocess
import sys

import pytest

from rlhf_peft import cli
from rlhf_peft.recipe import shipped


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
