"""Every shipped recipe: it says what it is, it validates, and, scaled down, it runs."""

import json
from pathlib import Path

import pytest
import yaml

import rlhf_peft
from rlhf_peft.recipe import load, shipped
from rlhf_peft.registry import Registry
from rlhf_peft.runs import read_manifest, read_metrics

from .small_model import one_layer

OWN = sorted(path.stem for path in shipped.folder().glob("*.yaml"))
EXPECTED = {
    *("quickstart", "sft", "reward-model", "dpo", "kto"),
    *("ppo", "grpo-gsm8k", "rloo", "online-dpo", "best-of-n"),
    "start",
    *("rlhf-8gb", "rlhf-12gb", "rlhf-24gb"),
}
QUESTIONS = [f"What is {n} plus {n}?" for n in range(1, 9)]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def chosen_and_rejected(question, number):
    good, bad = f"It is {2 * number}.", "I do not know."
    return {"chosen": [user(question), assistant(good)], "rejected": [user(question), assistant(bad)]}


FORMATS = {
    "trl-lib/Capybara": lambda q, n: {"messages": [user(q), assistant(f"It is {2 * n}.")]},
    "trl-lib/ultrafeedback_binarized": chosen_and_rejected,
    "trl-lib/ultrafeedback-prompt": lambda q, n: {"prompt": [user(q)]},
    "trl-lib/kto-mix-14k": lambda q, n: {
        "prompt": [user(q)],
        "completion": [assistant(f"It is {2 * n}.")],
        "label": n % 2 == 0,
    },
    "trl-lib/tldr": lambda q, n: {"prompt": f"{q}\n\nTL;DR:", "completion": f" It is {2 * n}."},
    "trl-lib/tldr-preference": lambda q, n: {
        "prompt": f"{q}\n\nTL;DR:",
        "chosen": f" It is {2 * n}.",
        "rejected": " Who knows?",
    },
    "openai/gsm8k": lambda q, n: {"question": q, "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"},
}
"""Dataset to a row as that dataset has it."""


@pytest.fixture(scope="module")
def registry():
    return Registry.load((), True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small local file for each dataset that a recipe names."""
    folder = tmp_path_factory.mktemp("data")
    found = {}
    for path, row in FORMATS.items():
        found[path] = folder / f"{path.replace('/', '-')}.jsonl"
        rows = [row(question, number) for number, question in enumerate(QUESTIONS, start=1)]
        found[path].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def scaled_down(recipe, files):
    """The overrides that make any recipe run here, in seconds: the tiny model, local rows, two updates a stage."""
    found = [
        "device=cpu",
        f"model.path={one_layer()}",
        "model.max_length=null",
        "model.chat_template_kwargs={}",
    ]
    for stage in recipe.stages:
        at = f"stages.{stage.name}"
        found += [f"{at}.max_steps=2", f"{at}.optimizer=adamw", f"{at}.eval.every=null"]
        found += dataset(f"{at}.dataset", stage.dataset, files)
        if stage.eval.dataset is not None:
            found += dataset(f"{at}.eval.dataset", stage.eval.dataset, files)
        if stage.eval.split is not None:
            found += [f"{at}.eval.split='train[:2]'", f"{at}.eval.size=2"]
        if stage.stage != "rl":
            found += [f"{at}.batch_size=2"]
        if stage.stage == "rl":
            found += [f"{at}.prompts_per_step=2", f"{at}.sampler.max_new_tokens=4"]
        if stage.stage == "rl" and "num_minibatches" in stage.algorithm.options:
            found += [f"{at}.algorithm.num_minibatches=1", f"{at}.algorithm.num_epochs=1"]
    return found


def dataset(at, source, files):
    if source.path is None:
        return [f"{at}.size=8"]
    return [f"{at}.path={files[source.path]}", f"{at}.name=null", f"{at}.split=train"]


def inner(node):
    """A YAML node and all mappings and lists inside it."""
    if not isinstance(node, yaml.CollectionNode):
        return []
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
    return [node, *(found for pair in pairs for part in pair for found in inner(part))]


def test_these_are_shipped():
    assert set(OWN) == EXPECTED
    assert len(OWN) == 14


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_says_what_it_is_and_validates(name, registry):
    recipe = load(name, plugins=registry)
    assert recipe.name == name
    text = shipped.text(name)
    comment = [line for line in text.splitlines() if line.startswith("#")]
    opening = text[: text.index("\nversion: 1\n")].splitlines()
    assert comment == opening
    assert shipped.summary(name).endswith(".")
    for said in ("# Hardware: ", f"# Launch: rlhf-peft run {name}"):
        assert any(line.startswith(said) for line in comment), said
    assert "Memory" in text and " GB" in text
    assert not [node for node in inner(yaml.compose(text)) if node.flow_style], "block style only"
    assert all(len(line) <= 110 for line in text.splitlines())


def test_the_readme_lists_every_recipe():
    listed = (Path(shipped.folder()) / "README.md").read_text()
    for name in OWN:
        assert f"| [`{name}`]({name}.yaml) | {shipped.summary(name)} |" in listed


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_runs_scaled_down(name, registry, files, tmp_path):
    overrides = [*scaled_down(load(name), files), f"output_dir={tmp_path}"]
    recipe = load(name, overrides, plugins=registry)
    result = rlhf_peft.run(recipe, registry=registry)
    assert read_manifest(result.folder)["status"] == "done"
    for stage in recipe.stages:
        assert [row for row in read_metrics(result.folder, stage.name) if row["step"] == 2], stage.name
    kept = yaml.safe_load((result.folder / "recipe.yaml").read_text())
    assert [stage["stage"] for stage in kept["stages"]] == [stage.stage for stage in load(name).stages]
