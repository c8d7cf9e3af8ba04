"""The program as a whole: help, usage errors, `validate`, `schema`, and `run` with a stand-in for the API."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_peft import __version__, cli
from rlhf_peft.recipe import shipped

from .cli_support import ROOT


def program(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "rlhf_peft", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
        **options,
    )


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys\nfrom rlhf_peft.cli import execute\n"
        "for verbs in (['--help'], ['run', '--help'], ['--version'], ['recipes', 'list', '--json']):\n"
        "    assert execute(verbs) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'trl', 'bitsandbytes', 'numpy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.endswith("heavy: []\n")
    assert f"rlhf-peft {__version__}\n" in done.stdout
    for verb in ("run", "validate", "schema", "recipes"):
        assert f" {verb} " in done.stdout


def test_the_module_is_the_program(tmp_path):
    done = program("recipes", "list", cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == shipped.names()
    assert done.stderr == ""
    assert program("recipes", "nonsense", cwd=tmp_path).returncode == 2


def test_no_arguments_print_the_help(capsys):
    assert cli.execute([]) == 0
    assert "Usage" in capsys.readouterr().out
    assert cli.execute(["recipes"]) == 0
    assert "copy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "error: Missing argument 'RECIPE'. See rlhf-peft run --help."),
        (["nonsense"], "error: No such command 'nonsense'"),
        (["run", "--nonsense", "x"], "error: No such option"),
        (["run", "nowhere"], "error: no shipped recipe is called 'nowhere'."),
        (["run", "./nowhere.yaml"], "error: nowhere.yaml: no such recipe file."),
        (["validate", "r"], "The file here is ./r.yaml."),
        (
            ["validate", "r.yaml", "sed=3"],
            "error: r.yaml: 1 problem, nothing was loaded.\n  sed: unknown key. Did you",
        ),
        (["validate", "r.yaml", "--reward", "x.py"], "expected FILE.py:FUNCTION"),
        (["validate", "r.yaml", "--reward", "x.py:f"], "x.py: no such file"),
        (["validate", "r.yaml", "--plugin", "x.py"], "error: --plugin x.py: x.py: no such file"),
        (["recipes", "show", "nowhere"], "error: no shipped recipe is called 'nowhere'."),
        (["schema", "nowhere"], "error: nothing is registered as 'nowhere'. Known rewards: "),
        (["schema", "--markdown", "ppo"], "leave out the name"),
    ],
)
def test_usage_errors_are_one_paragraph_and_exit_2(here, api, capsys, arguments, expected):
    assert cli.execute(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert expected in err
    assert "Traceback" not in err
    assert api.calls == []


def test_validate_prints_the_resolved_recipe(here, capsys):
    assert cli.execute(["validate", "r.yaml", "seed=5", "stages.sft.max_steps=2"]) == 0
    out, err = capsys.readouterr()
    resolved = yaml.safe_load(out)
    assert resolved["seed"] == 5
    assert resolved["stages"][0]["max_steps"] == 2
    assert resolved["stages"][0]["dataset"]["path"] == str(here / "rows.jsonl")
    assert resolved["lora"]["r"] == 16
    assert err == ""


def test_validate_reads_the_data_when_asked(here, api, capsys):
    assert cli.execute(["validate", "r.yaml", "--data"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["name"] == "small"
    first, *notes = err.splitlines()
    assert first == "sft: 3 rows" and len(notes) == 1 and notes[0].startswith("it fits without quantization")


def test_run_hands_all_it_was_given_to_the_api(here, api, capsys):
    (here / "mine.py").write_text("def short(completions, **columns):\n    return [0.0]\n")
    rl = {
        "stage": "rl",
        "dataset": {"path": "p.jsonl"},
        "algorithm": {"name": "ppo"},
        "sampler": {"name": "cached"},
    }
    arguments = [
        "run",
        "r.yaml",
        f"stages=[{json.dumps(rl)}]",
        "--reward",
        "mine.py:short",
        "--overwrite",
        "-q",
    ]
    assert cli.execute([*arguments, "--trust-remote-code", "--strict-plugins"]) == 0, capsys.readouterr().err
    ((recipe, options),) = api.calls
    assert [(entry.name, entry.weight) for entry in recipe.stages[0].rewards] == [("short", 1.0)]
    assert recipe.stages[0].algorithm.options["beta"] == 0.05
    registry = options.pop("registry")
    assert registry.strict_plugins
    assert registry.make("rewards", "short").name == "short"
    assert type(options.pop("reporter")).__name__ == "QuietReporter"
    assert options == {
        "overwrite": True,
        "code_files": [Path("mine.py")],
        "trust_remote_code": True,
        "resume": False,
        "resume_from": None,
        "allow_changed": (),
    }


def test_installed_plugins_that_are_broken_are_told_as_warnings(here, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('no luck')\n")
    info = tmp_path / "dist_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dist-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlhf_peft]\nbroken = broken_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.execute(["validate", "r.yaml"]) == 0
    assert "warning: plugin broken (dist-broken) was left out: its import failed" in capsys.readouterr().err
    assert cli.execute(["--no-plugins", "validate", "r.yaml"]) == 0
    assert capsys.readouterr().err == ""


def test_schema_of_the_recipe_and_of_one_plugin(capsys):
    assert cli.execute(["schema"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert "algorithms.ppo" in whole["$defs"]
    for name in ("ppo", "algorithms.ppo", "rlhf-peft:ppo"):
        assert cli.execute(["schema", name]) == 0
        assert "beta" in json.loads(capsys.readouterr().out)["properties"]


def test_a_run_as_json(here, capsys):
    data = ["stages.sft.dataset={name: tiny, part: demonstrations, size: 16}", "stages.sft.batch_size=4"]
    assert cli.execute(["run", "r.yaml", *data, "stages.sft.max_steps=2", "device=cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["folder"] == "runs/small" and result["stages"]["sft"]["loss_last"] > 0
    assert [json.loads(line)["event"] for line in err.splitlines()].count("step") == 2
    assert cli.execute(["run", "r.yaml", "--json", "--sweep", "seed=1,2"]) == 2
