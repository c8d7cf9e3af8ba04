"""Every shipped recipe fits on the card that its comment names, and the comment says what the plan says."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rlhf_peft.planning.forecast import forecast
from rlhf_peft.recipe import load, shipped
from rlhf_peft.registry import Registry

TINY = Path(shipped.__file__).parents[1] / "assets" / "tiny"
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 8,
}
SIZES = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
}
"""Shapes of Qwen3 as its models' config.json have them; all but 8B tie the output layer to the embedding."""
RECIPES = sorted(
    path.stem
    for path in shipped.folder().glob("*.yaml")
    if "one GPU with" in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The plan of a recipe on the card of its comment."""
    folder, registry = tmp_path_factory.mktemp("models"), Registry.load(no_plugins=True)

    def plan(name):
        text = (shipped.folder() / f"{name}.yaml").read_text(encoding="utf-8")
        size = re.search(r"path: Qwen/Qwen3-([\d.]+B)", text)[1]
        card = re.search(r"# Hardware: one GPU with (\d+) GB", text)[1]
        model = folder / size
        if not model.exists():
            model.mkdir()
            for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(TINY / file, model / file)
            config = {**QWEN3, **SIZES[size], "tie_word_embeddings": size != "8B"}
            (model / "config.json").write_text(json.dumps(config))
        recipe = load(name, [f"model.path={model}", "device=auto"], plugins=registry)
        return text, forecast(recipe, registry, gpu=f"{card}GB").plan

    return plan


@pytest.mark.parametrize("name", RECIPES)
def test_it_fits_and_its_comment_says_how_much_it_needs(planned, name):
    text, plan = planned(name)
    assert plan.verdict == "fits"
    peak = plan.peak
    line = (
        f"# Memory, by `rlhf-peft plan`, not measured: {peak.total / 2**30:.1f} GB at the peak "
        f"({peak.stage}, {peak.name})."
    )
    assert line in text.splitlines()
