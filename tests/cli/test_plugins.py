"""`rlhf-peft plugins list`, `show` and `check`, in this process; tests/plugins installs for real."""

import importlib.metadata
import json
import sys

import pytest

from rlhf_peft import cli, entry_points

from .plugins_support import REWARD


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
    ("arguments", "message"),
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
def test_usage_errors(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.execute(["plugins", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err
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
