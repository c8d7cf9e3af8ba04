"""Log-probabilities, values and gradients on a card, against the same model on the CPU in float32."""

import pytest
import torch

from rlhf_peft.engine import POLICY, VALUE
from rlhf_peft.engine.fast.dense_weights import dense_weight
from tests.gpu.support import base_of, rows_of, stir

pytestmark = pytest.mark.gpu


def on_the_cpu(base, folder):
    """The same model on the CPU in float32, over the dequantized weights, computed the plain way."""
    plain = base_of(folder, "cpu", "none", "float32", fast=False)
    for path, layer in base.lm.named_modules():
        if base.loaded.quantizer.is_quantized(layer):
            weight = dense_weight(layer, base.loaded.quantizer, torch.float32)
            plain.lm.get_submodule(path).weight.data = weight.cpu()
    return plain


def computed(base):
    """Log-probabilities, values, and the gradients of both adapters and the value head; on the CPU."""
    if VALUE not in base.roles.names:
        base.roles.add(VALUE, head=True)
    stir(base, VALUE)
    ids, actions = rows_of()
    here = ids.to(base.device)
    with base.training([POLICY, VALUE]) as parameters:
        with base.role(POLICY):
            logps, _ = base.forwards.logps(base.forwards.hidden(here), ids, actions)
        with base.role(VALUE):
            values = base.forwards.values(base.forwards.hidden(here))
        loss = logps.sum() + values[actions.to(base.device)].square().sum()
        gradients = torch.autograd.grad(loss, parameters)
    chosen = actions.to(base.device)
    return (
        logps[chosen].detach().cpu(),
        values[chosen].detach().float().cpu(),
        torch.cat([gradient.flatten().double().cpu() for gradient in gradients]),
    )


@pytest.mark.parametrize(
    ("quantization", "dtype", "logps_bound", "values_bound", "cosine_bound"),
    [
        ("nf4", "bfloat16", 0.05, 0.05, 0.99),
        ("none", "bfloat16", 0.05, 0.05, 0.99),
        ("none", "float32", 1e-3, 1e-3, 0.9999),
    ],
)
def test_a_card_computes_what_the_cpu_computes(
    quantization, dtype, logps_bound, values_bound, cosine_bound, device, model_of, write_down
):
    folder = model_of(num_hidden_layers=2)
    base = base_of(folder, device, quantization, dtype)
    logps, values, gradients = computed(base)
    expected_logps, expected_values, expected_gradients = computed(on_the_cpu(base, folder))
    logps_error = float((logps - expected_logps).abs().mean())
    values_error = float((values - expected_values).abs().mean() / expected_values.abs().mean())
    cosine = float(torch.cosine_similarity(gradients, expected_gradients, dim=0))
    size = float(gradients.norm() / expected_gradients.norm())
    write_down(logps_error=logps_error, values_error=values_error, cosine=cosine, size=size)
    assert logps_error < logps_bound and values_error < values_bound
    assert cosine > cosine_bound and abs(size - 1) < 0.05
