"""`run --sweep`: cells, names, what is run once, what is not run again, and what happens when one fails."""

import json

import pytest

from rlhf_peft import api, cli
from rlhf_peft.errors import GuardError, UsageError
from rlhf_peft.recipe import dump, load
from rlhf_peft.registry import Registry
from rlhf_peft.runs import RunFolder, read_manifest, read_metrics
from rlhf_peft.sweep.grid import labels, make_cells, parse_axis

SMALL = """\
version: 1
name: small
device: cpu
model:
  path: builtin:tiny
stages:
  - stage: sft
    dataset:
      name: tiny
      part: demonstrations
      size: 16
    batch_size: 4
    max_steps: 2
  - stage: reward_model
    dataset:
      name: tiny
      part: preferences
      size: 16
    batch_size: 4
    max_steps: 2
  - stage: rl
    dataset:
      name: tiny
      part: prompts
      size: 8
    algorithm:
      name: ppo
    sampler:
      name: cached
      max_new_tokens: 8
    rewards:
      - name: learned
    prompts_per_step: 4
    learning_rate: 1e-3
    max_steps: 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


@pytest.fixture(scope="module")
def registry():
    return Registry.load((), True)


@pytest.fixture
def fake(here, monkeypatch):
    """Runs that train nothing but leave a finished folder; `fake.broken` names those that fail, and how."""

    class Fake:
        def __init__(self):
            self.ran, self.broken = [], {}

        def __call__(self, recipe, *, overwrite, begun_by, **options):
            self.ran.append((recipe.name, None if begun_by is None else begun_by.name))
            folder = RunFolder.plan(recipe.output_dir, recipe.name, overwrite=overwrite)
            folder.write_recipe(dump(recipe))
            if recipe.name in self.broken:
                folder.finish("failed")
                raise self.broken[recipe.name]
            for stage in recipe.stages:
                folder.append_metrics(stage.name, 1, {"reward": recipe.seed, "loss": 0.5})
            folder.finish("done")

    fake = Fake()
    monkeypatch.setattr(api, "run", fake)
    return fake


def sweep(*arguments):
    axes = [part for argument in arguments for part in ("--sweep", argument)]
    return cli.execute(["--no-plugins", "run", "./small.yaml", "-q", *axes])


def comparable(folder):
    times = ("time", "seconds")
    rows = [
        {key: value for key, value in row.items() if not any(word in key for word in times)}
        for row in read_metrics(folder)
    ]
    assert rows
    return [
        {key: value for key, value in row.items() if "_per_second" not in key and "memory" not in key}
        for row in rows
    ]


# --- cells ---


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=1,2,3", (1, 2, 3)),
        ("lora.r=[8, 16]", (8, 16)),
        ("stages.rl.algorithm.name=ppo,grpo", ("ppo", "grpo")),
        (
            "stages.rl.algorithm=[{name: ppo, beta: 0.1}, {name: grpo}]",
            ({"name": "ppo", "beta": 0.1}, {"name": "grpo"}),
        ),
        ("lora.target_modules=[all-linear, [q_proj, v_proj]]", ("all-linear", ["q_proj", "v_proj"])),
        ("stages.rl.kl_limit=null,5", (None, 5)),
    ],
)
def test_values_are_read_as_yaml(text, values):
    assert parse_axis(text).values == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "expected K=a,b"),
        ("seed=", "expected K=a,b"),
        ("seed=1,2,1", "1 is there twice"),
        ("seed=[]", "no value"),
        ("name=a,b", "has its own folder already"),
        ("stages.rl.algorithm={name: ppo},{name: grpo}", "put mappings into a list"),
        ("seed=[1,", "not valid YAML"),
    ],
)
def test_axes_that_cannot_be_read_say_so(text, message):
    with pytest.raises(UsageError, match=text.partition("=")[0]) as caught:
        parse_axis(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ([{"seed": 1, "stages.rl.algorithm.name": "ppo"}], ["seed1-ppo"]),
        ([{"stages.sft.warmup": 1e-1, "stages.rl.warmup": "1e-2"}], ["sft.warmup0.1-rl.warmup1e-2"]),
        (
            [{"algorithm": {"name": "ppo", "beta": 0.1}}, {"algorithm": {"name": "grpo"}}],
            ["ppo-beta0.1", "grpo"],
        ),
        ([{"model.path": "Qwen/Qwen3-0.6B"}, {"model.path": "../other"}], ["Qwen-Qwen3-0.6B", "other"]),
        ([{"lora.use_rslora": True}, {"lora.use_rslora": None}], ["use_rsloratrue", "use_rsloranull"]),
    ],
)
def test_names_are_readable_and_safe(grid, names):
    assert labels(grid) == names


def test_names_that_would_be_the_same_are_told_apart_and_long_ones_cut():
    same = labels([{"model.path": "a/b"}, {"model.path": "a-b"}, {"model.path": "A-B"}])
    assert len({name.lower() for name in same}) == 3
    (long,) = labels([{"model.path": "x" * 500}])
    assert len(long) < 120


def test_every_cell_is_checked_before_any_runs(fake, capsys):
    assert sweep("seed=1,-1", "lora.r=8,0") == 2
    err = capsys.readouterr().err
    assert "3 of 4 cells are wrong, nothing was run" in err
    assert "seed1-r0:\n    lora.r: expected a number greater than 0, found 0" in err
    assert fake.ran == []


def test_options_that_the_other_algorithm_does_not_have_lead_to_sections(here, fake, capsys):
    text = SMALL.replace("name: ppo", "name: ppo\n      vf_coef: 0.2")
    (here / "small.yaml").write_text(text)
    assert sweep("stages.rl.algorithm.name=ppo,grpo") == 2
    err = capsys.readouterr().err
    assert "1 of 2 cells are wrong" in err
    assert "grpo:\n    stages.rl.algorithm.vf_coef" in err
    assert "--sweep 'stages.rl.algorithm=[{name: ppo, beta: 0.1}, {name: grpo}]'" in err
    assert sweep("stages.rl.algorithm=[{name: ppo, vf_coef: 0.2}, {name: grpo}]") == 0
    assert [name for name, _ in fake.ran][1:] == ["small-ppo-vf_coef0.2", "small-grpo"]


def test_a_key_is_swept_once(fake, capsys):
    assert sweep("seed=1", "seed=2") == 2
    assert "swept twice" in capsys.readouterr().err


# --- what runs ---


def test_stages_that_do_not_differ_run_once_at_every_depth(fake):
    assert sweep(*(f"stages.{stage}.learning_rate=1e-3,2e-3" for stage in ("sft", "reward_model", "rl"))) == 0
    shared = [name for name, _ in fake.ran if "-shared-" in name]
    cells = [(name, begun) for name, begun in fake.ran if "-shared-" not in name]
    assert len(cells) == 8
    assert len(shared) == len(set(shared)) == 2 + 4  # two sft, and on each of them two reward models
    first = dict(fake.ran)
    assert all(begun in shared for _, begun in cells)
    assert sum(first[name] in shared for name in shared) == 4
    assert sum(first[name] is None for name in shared) == 2


def test_nothing_is_shared_where_the_seed_or_the_adapters_differ(fake):
    assert sweep("seed=1,2", "lora.r=4,8") == 0
    assert [begun for _, begun in fake.ran] == [None] * 4


def test_a_sweep_goes_on_where_it_ended(fake, here, capsys):
    fake.broken = {"small-learning_rate2e-3": GuardError("the KL is too high")}
    axis = "stages.rl.learning_rate=1e-3,2e-3,3e-3"
    assert sweep(axis) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 cells failed: small-learning_rate2e-3" in err
    headings = next(line.split() for line in out.splitlines() if line.strip().startswith("cell "))
    assert headings == ["cell", "status", "reward", "loss", "seconds"]
    assert [line.split()[:2] for line in out.splitlines() if line.strip().startswith("learning_rate")] == [
        ["learning_rate1e-3", "done"],
        ["learning_rate2e-3", "failed"],
        ["learning_rate3e-3", "done"],
    ]
    kept = json.loads((here / "runs" / "small-sweep.json").read_text())
    assert [cell["status"] for cell in kept["cells"]] == ["done", "failed", "done"]
    assert kept["cells"][1]["error"] == "the KL is too high"
    assert kept["cells"][0]["figures"] == {"reward": 17.0, "loss": 0.5}

    fake.ran.clear()
    fake.broken = {}
    assert sweep(axis) == 0
    assert [name for name, _ in fake.ran] == ["small-learning_rate2e-3"]
    fake.ran.clear()
    assert cli.execute(["--no-plugins", "run", "./small.yaml", "-q", "--overwrite", "--sweep", axis]) == 0
    assert len(fake.ran) == 4


def test_cells_fail_with_the_stages_that_they_share(fake, capsys):
    axis = "stages.rl.learning_rate=1e-3,2e-3"
    assert sweep(axis) == 0
    shared = next(name for name, _ in fake.ran if "-shared-" in name)
    fake.ran.clear()
    fake.broken = {shared: RuntimeError("out of memory")}
    assert cli.execute(["--no-plugins", "run", "./small.yaml", "--overwrite", "--sweep", axis]) == 1
    assert [name for name, _ in fake.ran] == [shared]
    assert "failed: " + shared + ": out of memory" in capsys.readouterr().err


def test_an_unexpected_error_leaves_its_traceback(fake, here):
    fake.broken = {
        "small-seed1": RuntimeError("out of\nmemory"),
        "small-seed2": GuardError("the KL is too high"),
    }
    assert sweep("seed=1,2,3") == 1
    first, second, third = json.loads((here / "runs" / "small-sweep.json").read_text())["cells"]
    assert first["error"] == "out of memory"
    assert "RuntimeError: out of\nmemory" in first["traceback"]
    assert (second["error"], second["traceback"]) == ("the KL is too high", "")
    assert third["status"] == "done"


def test_what_only_the_user_can_mend_stops_the_sweep(fake, capsys):
    fake.broken = {"small-seed1": UsageError("rows.jsonl: no such file")}
    assert sweep("seed=1,2") == 2
    assert [name for name, _ in fake.ran] == ["small-seed1"]


def test_a_folder_in_the_way_is_told_before_anything_runs(fake, here, capsys):
    assert sweep("seed=1,2") == 0
    fake.ran.clear()
    assert cli.execute(["--no-plugins", "run", "./small.yaml", "lora.r=4", "-q", "--sweep", "seed=0,2"]) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err
    (here / "runs" / "small-seed5").mkdir()
    (here / "runs" / "small-seed5" / "mine.txt").write_text("mine")
    assert sweep("seed=4,5") == 2
    assert "holds files that are not a run's" in capsys.readouterr().err
    assert fake.ran == []


# --- for real ---


@pytest.mark.parametrize(
    ("axis", "overrides", "shared"),
    [
        ("stages.rl.learning_rate=1e-3,5e-3", [], 2),
        pytest.param("stages.reward_model.learning_rate=1e-3,5e-3", [], 1, marks=pytest.mark.slow),
        pytest.param(
            "stages.rl.algorithm=[{name: grpo, num_generations: 2}, {name: rloo}]",
            [],
            2,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "stages.rl.learning_rate=1e-3,5e-3",
            ["stages.rl.algorithm.value=policy"],
            2,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_shared_cell_is_what_it_would_be_alone(here, registry, axis, overrides, shared):
    assert cli.execute(["--no-plugins", "run", "./small.yaml", *overrides, "-q", "--sweep", axis]) == 0
    cells = make_cells("./small.yaml", overrides, [parse_axis(axis)], plugins=registry)
    cell, other = (one.recipe.run_folder for one in cells)
    kept = json.loads((here / "runs" / "small-sweep.json").read_text())["cells"]
    first = here / "runs" / kept[0]["shared"]
    assert read_manifest(first)["stages_done"] == ["sft", "reward_model"][:shared]
    assert read_manifest(other)["begun"] == first.name
    assert read_manifest(other)["stages_done"] == ["sft", "reward_model", "rl"]

    alone = api.run(cells[1].recipe.model_copy(update={"name": "alone"}), registry=registry)
    assert comparable(other) == comparable(alone.folder)
    assert comparable(cell) != comparable(alone.folder)
    trained = sorted(path.relative_to(other) for path in (other / "adapters").rglob("*.safetensors"))
    assert len(trained) >= 3
    for file in trained:
        assert (other / file).read_bytes() == (alone.folder / file).read_bytes(), file
    again = api.load_recipe(other / "recipe.yaml", registry=registry)
    assert again.model_dump() == cells[1].recipe.model_dump()


def test_a_run_that_is_not_the_beginning_is_refused(here, registry):
    first = load("./small.yaml", ["name=first"], plugins=registry)
    sft = first.model_copy(update={"stages": first.stages[:1]})
    api.run(sft, registry=registry)
    rl = first.model_copy(update={"stages": first.stages[1:], "name": "second"})
    with pytest.raises(UsageError, match="not a finished run of the stages reward_model"):
        api.run(rl, registry=registry, begun_by=sft.run_folder)
