"""What is refused when a run is resumed is named in words."""

import pytest

from rlhf_peft.session.recipe_changes import describe, show_changes

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("name", "before", "now", "keys", "expected"),
    [
        ("recipe", A, B, {"seed": (17, 99)}, "recipe changed (seed: 17 -> 99)"),
        ("recipe", A, B, {"model.max_length": (64, 32)}, "recipe changed (model.max_length: 64 -> 32)"),
        ("quantization", "nf4 double", "int8", {}, "quantization changed (nf4 double -> int8)"),
        ("base", A, B, {}, "base changed (the base model's files are others)"),
        ("base", A, B, {"model.path": ("x", "y")}, 'base changed (model.path: "x" -> "y")'),
        ("plugins", A, B, {}, "plugins changed (other plugins are installed, or other versions of them)"),
        ("rewards.py", A, B, {}, "rewards.py changed (it has another content)"),
        ("rewards.py", None, B, {}, "rewards.py changed (it is new)"),
        ("rewards.py", A, None, {}, "rewards.py changed (it is gone)"),
        ("dataset.sft", A, B, {}, "dataset.sft changed (the rows that the stage sft reads are others)"),
        ("stages.rl", A, B, {"stages.rl2.seed": (1, 2)}, "stages.rl changed (it has another content)"),
    ],
)
def test_a_change_is_named_in_words(name, before, now, keys, expected):
    assert describe(name, before, now, keys) == expected


def test_many_keys_are_not_all_named():
    assert show_changes({f"k{i}": (1, 2) for i in range(20)}).endswith("k7: 1 -> 2, and 12 more")
