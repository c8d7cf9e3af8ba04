import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import rlhf_peft
from rlhf_peft import __version__, cli
from rlhf_peft.cli.progress import reporter
from rlhf_peft.errors import GuardError, RlhfPeftError, UsageError
from rlhf_peft.recipe import document, shipped

ROOT = Path(rlhf_peft.__file__).parent.parent
RECIPE = """\
version: 1
name: small
model:
  path: builtin:tiny
stages:
  - stage: sft
    dataset:
      path: rows.jsonl
"""


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
    assert type(options.pop("reporter")).__name__ == "Quiet"
    assert options == {
        "overwrite": True,
        "code_files": [Path("mine.py")],
        "trust_remote_code": True,
        "resume": False,
        "resume_from": None,
        "allow_changed": (),
    }


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RlhfPeftError("the reward broke"), 1, "error: the reward broke\n"),
        (GuardError("loss is NaN at step 3"), 3, "stopped (exit 3): loss is NaN at step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "error: unexpected ZeroDivisionError: division by zero. "
            "For the whole story: rlhf-peft --traceback ...\n",
        ),
        (BrokenPipeError("a worker is gone"), 1, "error: unexpected BrokenPipeError: a worker is gone."),
    ],
)
def test_how_a_run_can_end(here, api, capsys, error, code, told):
    def run(recipe, **options):
        raise error

    api.run = run
    assert cli.execute(["run", "r.yaml"]) == code
    assert told in capsys.readouterr().err
    assert cli.execute(["--traceback", "run", "r.yaml"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_sigterm_exits_143(here, api, capsys):
    def run(recipe, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    api.run = run
    before = signal.getsignal(signal.SIGTERM)
    assert cli.execute(["run", "r.yaml"]) == 143
    assert capsys.readouterr().err == "terminated\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_goes_away_is_no_error():
    command = (
        f"{sys.executable} -m rlhf_peft recipes show {shipped.names()[0]} | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.strip() == "0"
    assert done.stderr == ""


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


def test_recipes_show_prints_the_file(capsys):
    for name in shipped.names():
        assert cli.execute(["recipes", "show", name]) == 0
        assert capsys.readouterr().out == shipped.path(name).read_text()


def test_recipes_list_as_json(capsys):
    assert cli.execute(["recipes", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == shipped.names()
    assert all(row["summary"] and Path(row["path"]).is_file() for row in rows)


def test_recipes_copy_never_overwrites_unasked(here, capsys):
    name = shipped.names()[0]
    assert cli.execute(["recipes", "copy", name, "new/mine", "seed=99"]) == 0
    out, err = capsys.readouterr()
    assert out == "new/mine.yaml\n"
    assert err == "next: rlhf-peft run new/mine.yaml\n"
    copied = here / "new" / "mine.yaml"
    assert yaml.safe_load(copied.read_text())["seed"] == 99
    assert copied.read_text().startswith("#")
    assert cli.execute(["recipes", "copy", name, "new/mine.yaml"]) == 2
    assert "Replace it with --force" in capsys.readouterr().err
    assert yaml.safe_load(copied.read_text())["seed"] == 99
    assert cli.execute(["recipes", "copy", name, "new/mine.yaml", "--force"]) == 0
    body = shipped.text(name)
    assert copied.read_text() == f"# From the recipe {name}.\n{body[body.index('version: 1') :]}"
    assert cli.execute(["recipes", "copy", name, "new"]) == 0
    assert (here / "new" / f"{name}.yaml").exists()
    assert cli.execute(["recipes", "copy", name, "other.yaml", "sed=1"]) == 2
    assert not (here / "other.yaml").exists()


def test_the_page_of_all_keys_is_up_to_date():
    from rlhf_peft.registry import Registry
    from rlhf_peft.stages import documentation

    registry = Registry.load(no_plugins=True)
    page = document(registry.options()) + "\n" + documentation.document(registry)
    written = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert written == page, "run: rlhf-peft --no-plugins schema --markdown > recipes/README.md"


def tell(shown):
    shown.stage("rl", 30)
    for step in range(1, 31):
        shown.step("rl", step, {"reward": 0.123456, "kl": 2.0, "other": 1.0})
    shown.say("[news]")
    shown.close()


def test_progress_in_a_log_file_is_a_few_whole_lines(capsys):
    tell(reporter())
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "rl: 30 updates"
    assert lines[1].split()[:2] == ["rl", "1/30"]
    assert "  reward 0.123  KL 2  " in lines[1] and lines[1].endswith(" GB")
    assert lines[-2].split()[1] == "30/30"
    assert lines[-1] == "[news]"
    assert len(lines) <= 14


def test_progress_says_how_long_it_takes_and_what_each_reward_and_the_memory_are(capsys):
    shown = reporter()
    shown.stage("rl", 4)
    shown.step(
        "rl",
        1,
        {"reward": 3.0, "rewards/a/mean": 1.0, "rewards/b/mean": 2.0, "rewards/a/std": 9.0, "kl": 0.5},
    )
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"  rl 1/4  0:00, 0:00 left  reward 3  a 1  b 2  KL 0\.5  \d+\.\d GB", line)


def test_the_time_that_is_left_counts_from_where_a_stage_was_resumed(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("rlhf_peft.cli.progress.time.monotonic", lambda: now[0])
    shown = reporter()
    shown.stage("rl", 1000)
    for step in range(901, 907):
        now[0] += 10
        shown.step("rl", step, {})
    shown._last = 0
    now[0] += 10
    shown.step("rl", 907, {})
    assert "rl 907/1000  1:10, 15:30 left" in capsys.readouterr().err


def test_progress_as_json_is_an_object_a_line(capsys):
    tell(reporter(as_json=True))
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert told[0] == {"event": "stage", "stage": "rl", "total": 30} and told[-1] == {
        "event": "note",
        "text": "[news]",
    }
    metrics = {"reward": 0.123456, "kl": 2.0, "other": 1.0}
    assert told[1:-1] == [
        {"event": "step", "stage": "rl", "step": i, "metrics": metrics} for i in range(1, 31)
    ]


def test_a_run_as_json(here, capsys):
    data = ["stages.sft.dataset={name: tiny, part: demonstrations, size: 16}", "stages.sft.batch_size=4"]
    assert cli.execute(["run", "r.yaml", *data, "stages.sft.max_steps=2", "device=cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["folder"] == "runs/small" and result["stages"]["sft"]["loss_last"] > 0
    assert [json.loads(line)["event"] for line in err.splitlines()].count("step") == 2
    assert cli.execute(["run", "r.yaml", "--json", "--sweep", "seed=1,2"]) == 2


def test_quiet_says_nothing(capsys):
    tell(reporter(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    tell(reporter())
    assert "reward 0.123" in stream.getvalue()
    assert "30/30" in stream.getvalue()
    assert "[news]" in stream.getvalue()


def test_sighup_ends_a_verb_as_sigterm_does(here, api, capsys):
    def run(recipe, **options):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)

    api.run = run
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite itself may run under nohup
    try:
        assert cli.execute(["run", "r.yaml"]) == 129
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().err == "hung up\n"


def test_sighup_stays_ignored_under_nohup(here, api, capsys):
    def run(recipe, **options):
        os.kill(os.getpid(), signal.SIGHUP)
        raise UsageError("went on")

    api.run = run
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.execute(["run", "r.yaml"]) == 2
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "went on" in capsys.readouterr().err
