"""Keys of earlier recipes, and how a quantizer is named now."""

import pytest

from rlhf_peft.errors import RecipeError
from rlhf_peft.recipe import load


def quantization(plugins, given, *overrides):
    model = {"path": "m"} if given is ... else {"path": "m", "quantization": given}
    data = {
        "version": 1,
        "name": "x",
        "model": model,
        "stages": [{"stage": "sft", "dataset": {"path": "a.jsonl"}}],
    }
    recipe = load(data, overrides, plugins=plugins)
    return recipe.model.model_dump(mode="json")["quantization"]


def test_a_name_alone_and_a_section(plugins):
    assert quantization(plugins, ...) == "nf4"
    assert quantization(plugins, "none") == "none"
    whole = {"name": "nf4", "double_quantization": True}
    assert quantization(plugins, {"name": "nf4"}) == whole
    assert quantization(plugins, whole) == whole


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (4, "model.quantization: expected the name of a quantizer or keys with values, found 4"),
        ({}, "model.quantization.name: required, but missing"),
        ({"name": "none", "bits": 4}, "model.quantization.bits: unknown key"),
        ({"name": "nf5"}, "model.quantization.name: unknown"),
        ("nf5", "model.quantization: unknown"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(plugins, given, message):
    with pytest.raises(RecipeError) as caught:
        quantization(plugins, given)
    assert message in str(caught.value)


def test_double_quantization_was_a_key_of_the_model(plugins):
    """The default is dropped; anything else is an option of the quantizer, and an error where it has no such option."""
    assert quantization(plugins, "nf4", "model.double_quantization=true") == "nf4"
    assert quantization(plugins, "none", "model.double_quantization=true") == "none"
    off = {"name": "nf4", "double_quantization": False}
    assert quantization(plugins, "nf4", "model.double_quantization=false") == off
    assert quantization(plugins, ..., "model.double_quantization=false") == off
    with pytest.raises(RecipeError, match=r"model.quantization.double_quantization: unknown key"):
        quantization(plugins, "none", "model.double_quantization=false")
