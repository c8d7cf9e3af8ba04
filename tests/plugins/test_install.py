"""What a user does with plugins, in an environment of their own."""

import json
import shutil

import pytest
import yaml

from .conftest import PACKAGES, PLUGIN, needs_are_here, reward_code, write_package
from .test_runs import RECIPE as SMALL

HOOK = "from rlhf_peft.plugin import hookimpl\n@hookimpl\n"
BROKEN = {
    "broken-import": ("import a_module_that_is_not_there", "its import failed: ModuleNotFoundError"),
    "broken-exit": ("import sys\nprint('a word on stdout')\nsys.exit(0)", "its import failed: SystemExit: 0"),
    "broken-base": (
        "class E(BaseException): pass\nraise E('two\\nlines')",
        "its import failed: E: two lines",
    ),
    "broken-signature": (HOOK + "def rlhf_peft_register_rewards(registry): pass", "a hook does not fit"),
    "broken-api": (reward_code("new") + "\nHOOK_API = 2", "written for HOOK_API 2; this rlhf-peft has 1"),
    "duplicate": (reward_code("good"), "the name good is taken: reward good (agood 1.0)"),
}
COMMANDS = """
[project.entry-points."rlhf_peft.commands"]
hello = "{module}:hello"
run = "{module}:hello"
"""
RECIPE = """\
version: 1
name: walk
device: cpu
plugins:
  - rlhf-peft-brevity>=0.1
model:
  path: builtin:tiny
stages:
  - stage: rl
    dataset:
      name: tiny
      part: prompts
      size: 32
    algorithm:
      name: ppo
      value: policy
      num_epochs: 1
    sampler:
      name: cached
      max_new_tokens: 8
    rewards:
      - name: brevity
        word: fox
    prompts_per_step: 4
    learning_rate: 1.0e-3
    max_steps: 2
"""


def pip(environment, *folders):
    environment.out("-m", "pip", "install", "--quiet", "--no-deps", *folders)


@pytest.mark.slow
def test_broken_plugins_beside_a_good_one(environment, tmp_path):
    """Acceptance 2: the good one works and the list tells the truth."""
    source = tmp_path / "source"
    folders = [write_package(source, "agood", reward_code("good"), PLUGIN)]
    folders += [write_package(source, name, code, PLUGIN) for name, (code, _) in BROKEN.items()]
    hello = "def hello(name: str = 'you') -> None:\n    print('hello', name)\n"
    folders.append(write_package(source, "good-command", hello, COMMANDS))
    folders.append(
        write_package(source, "bad-command", "raise SystemExit(3)", COMMANDS.replace("hello =", "bad ="))
    )
    pip(environment, *folders)

    listed = environment.program("plugins", "list", "--json")
    assert listed.returncode == 0 and listed.stderr.strip() == "a word on stdout"
    rows = {row["name"]: row for row in json.loads(listed.stdout) if row["distribution"] != "rlhf-peft"}
    assert rows.pop("agood")["registers"]["rewards"] == ["good"]
    assert {name: row["status"] for name, row in rows.items()} == {
        name.replace("-", "_"): "broken" for name in BROKEN
    }
    for name, (_, reason) in BROKEN.items():
        assert reason in rows[name.replace("-", "_")]["reason"]
        assert rows[name.replace("-", "_")]["version"] == "1.0"
    table = environment.program("plugins", "list")
    assert table.stdout.count("broken: ") == len(BROKEN)
    assert "reward good" in table.stdout
    assert environment.out("-m", "rlhf_peft", "plugins", "list", "--requirements") == "agood==1.0\n"
    checked = environment.program("plugins", "check", "agood")
    assert (checked.returncode, checked.stdout) == (0, "ok      reward good\n")
    assert "its import failed" in environment.out("-m", "rlhf_peft", "plugins", "show", "broken-import")

    shown = environment.program("--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert "From the plugin good-command 1.0." in shown.stdout and " bad " in shown.stdout
    assert environment.out("-m", "rlhf_peft", "hello", "--name", "fox") == "hello fox\n"
    assert "--name" in environment.out("-m", "rlhf_peft", "hello", "--help")
    bad = environment.program("bad")
    assert bad.returncode == 2
    assert "error: command bad (bad-command 1.0): its import failed: SystemExit: 3" in bad.stderr
    assert "RECIPE" in environment.out("-m", "rlhf_peft", "run", "--help")
    assert environment.program("--no-plugins", "hello").returncode == 2
    assert " hello " not in environment.out("-m", "rlhf_peft", "--no-plugins", "--help")
    disabled = json.loads(
        environment.out(
            "-m", "rlhf_peft", "plugins", "list", "--json", RLHF_PEFT_DISABLE_PLUGINS="Agood, broken_exit"
        )
    )
    states = {row["name"]: row["status"] for row in disabled}
    assert states["agood"] == states["broken-exit"] == "disabled"
    assert states["duplicate"] == "ok"


def test_installing_never_replaces_what_the_trainer_stands_on(environment, tmp_path):
    greedy = write_package(tmp_path / "s", "greedy", reward_code("x"), PLUGIN, '"torch==1.0"')
    done = environment.program("plugins", "install", greedy, "--yes")
    assert done.returncode == 2
    assert (
        "would replace the installed torch" in done.stderr
        and "greedy 1.0 depends on torch==1.0" in done.stderr
    )
    assert environment.run("-c", "import greedy").returncode == 1
    missing = environment.program("plugins", "install", "rlhf-peft-nowhere", "--yes")
    assert (
        missing.returncode == 2 and "No matching distribution found for rlhf-peft-nowhere" in missing.stderr
    )
    option = environment.program("plugins", "install", "--", "--index-url=http://localhost")
    assert option.returncode == 2 and "is no package" in option.stderr
    stranger = environment.program("plugins", "uninstall", "torch", "--yes")
    assert stranger.returncode == 2 and "no plugin 'torch' is installed" in stranger.stderr


@pytest.mark.slow
def test_a_new_plugin_from_the_first_line_to_a_run(environment, tmp_path):
    """Acceptance 1: new, edit, install, name it in a recipe, run, uninstall."""
    here = tmp_path / "here"
    here.mkdir()
    made = environment.program("plugins", "new", "rlhf-peft-brevity", "--kind", "reward", cwd=here)
    assert made.returncode == 0, made.stderr
    module = here / "rlhf-peft-brevity" / "rlhf_peft_brevity.py"
    code = module.read_text()
    for old, new in (
        ('Field("please"', 'Field("fox"'),
        ("Field(3, gt=0", "Field(2, gt=0"),
        ("counts = [min(text", "counts = [-min(text"),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    module.write_text(code)
    (here / "walk.yaml").write_text(RECIPE)
    before = environment.program("validate", "walk.yaml", cwd=here)
    assert before.returncode == 2 and "rlhf-peft-brevity is not installed" in before.stderr

    asked = environment.program("plugins", "install", "./rlhf-peft-brevity", cwd=here)
    assert asked.returncode == 2 and "Say --yes" in asked.stderr
    assert asked.stdout == "+ rlhf-peft-brevity 0.1.0\n"
    done = environment.program("plugins", "install", "./rlhf-peft-brevity", "--yes", cwd=here)
    assert done.returncode == 0, done.stderr
    shown = environment.out("-m", "rlhf_peft", "plugins", "show", "brevity")
    assert "word = 'fox'" in shown
    known = environment.program("plugins", "install", "-r", "walk.yaml", cwd=here)
    assert known.returncode == 0 and "installed already" in known.stderr

    run = environment.program("run", "walk.yaml", "-q", cwd=here)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in (here / "runs/walk/metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines if line["stage"] == "rl"} >= {1, 2}
    manifest = json.loads((here / "runs/walk/manifest.json").read_text())
    assert manifest["plugins"]["rlhf-peft-brevity"] == "0.1.0"
    assert yaml.safe_load((here / "runs/walk/recipe.yaml").read_text())["plugins"] == [
        "rlhf-peft-brevity>=0.1"
    ]

    gone = environment.program("plugins", "uninstall", "brevity", "--yes", cwd=here)
    assert (gone.returncode, gone.stdout) == (0, "- rlhf-peft-brevity 0.1.0\n"), gone.stderr
    assert environment.program("validate", "walk.yaml", cwd=here).returncode == 2


@pytest.mark.slow
def test_the_packages_of_this_repository(environment, tmp_path):
    """Each is installed from its folder, found, tested as installed, and uninstalled."""
    packages = [path for path in PACKAGES if needs_are_here(path)]
    assert len(packages) >= 4
    copies = [shutil.copytree(path, tmp_path / "copies" / path.name) for path in packages]
    done = environment.program("plugins", "install", *copies, "--yes")
    assert done.returncode == 0, done.stderr
    rows = {
        row["distribution"]: row
        for row in json.loads(environment.out("-m", "rlhf_peft", "plugins", "list", "--json"))
    }
    for path in packages:
        row = rows[path.name]
        assert row["status"] == "ok" and row["version"] == "0.1.0"
        assert any(row["registers"].values()) or row["hooks"]
    tests = [next((copy / "tests").glob("test_*.py")) for copy in copies]
    ini = tmp_path / "pytest.ini"
    ini.write_text("[pytest]\n")
    told = environment.out(
        "-m",
        "pytest",
        "-q",
        "-c",
        ini,
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        *tests,
        cwd=tmp_path,
    )
    assert " passed" in told and "failed" not in told
    (tmp_path / "r.yaml").write_text(SMALL.format(algorithm="reinforce", sampler="cached"))
    run = environment.program("run", "r.yaml", "-q", "--strict-plugins", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "runs/small/csv/rl.csv").read_text().splitlines()) >= 3
    for path in packages:
        assert environment.program("plugins", "uninstall", path.name, "--yes").returncode == 0
    left = json.loads(environment.out("-m", "rlhf_peft", "plugins", "list", "--json"))
    assert {row["distribution"] for row in left} == {"rlhf-peft"}


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.name)
def test_every_package_has_what_a_package_needs(path):
    assert (path / "README.md").read_text().startswith(f"# {path.name}\n")
    module = path / f"{path.name.replace('-', '_')}.py"
    imports = [line for line in module.read_text().splitlines() if "rlhf_peft." in line and "import" in line]
    assert imports and all(line.startswith("from rlhf_peft.plugin import") for line in imports)
