"""Weights that are quantized while they are loaded onto a card, and the head of log-probabilities."""

import pytest
import torch

from rlhf_peft.engine import POLICY
from rlhf_peft.engine.fast.dense_weights import dense_weight
from tests.gpu.support import base_of, logps_of, rows_of

pytestmark = pytest.mark.gpu


def quantized_layers(base):
    quantizer = base.loaded.quantizer
    return {name: layer for name, layer in base.lm.named_modules() if quantizer.is_quantized(layer)}


@pytest.mark.parametrize(("name", "worst"), [("nf4", 0.12), ("fp4", 0.2), ("int8", 0.02)])
def test_weights_are_near_those_of_the_folder(name, worst, device, model_of, write_down):
    folder = model_of(num_hidden_layers=2)
    base, plain = base_of(folder, device, name), base_of(folder, "cpu", "none", "float32")
    layers = quantized_layers(base)
    assert len(layers) == 14 and all(layer.weight.device == base.device for layer in layers.values())
    errors = []
    for path, layer in layers.items():
        weight = plain.lm.get_submodule(path).weight
        found = dense_weight(layer, base.loaded.quantizer, torch.float32).cpu()
        errors.append(float((found - weight).norm() / weight.norm()))
    write_down(worst_error=max(errors))
    assert max(errors) < worst


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8", "none"])
def test_log_probabilities_are_those_of_the_logits(name, device, model_of, write_down):
    """They are computed from hidden states, a few tokens at a time; a base whose head is not known is refused."""
    base = base_of(model_of(num_hidden_layers=2), device, name)
    ids, actions = rows_of()
    with torch.no_grad(), base.role(POLICY, train=False):
        logits = base.lm(input_ids=ids.to(base.device), use_cache=False).logits.float()
    logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None].to(base.device))[..., 0]
    expected = logps[actions[:, 1:].to(base.device)].cpu()
    difference = (logps_of(base, ids, actions) - expected).abs()
    write_down(mean=float(difference.mean()), largest=float(difference.max()))
    assert difference.mean() < 0.03
