"""Random models made on a card, bases over them, and what tests compute with both."""

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import rlhf_peft
from rlhf_peft.engine import POLICY, BaseSpec, LoraSpec, SharedBase
from rlhf_peft.engine.base_spec import quiet
from rlhf_peft.recipe import load
from rlhf_peft.session.policy_view import BaseView
from rlhf_peft.types import Request, SamplingParams
from tests.benchmarks.setup import registry_of
from tests.quantizers import REGISTRY, held_as

TINY = Path(rlhf_peft.__file__).parent / "assets" / "tiny"
VOCABULARY = 1280
"""Of the tokenizer that ships with the package."""
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2, "head_dim": 128}
"""A model whose activations are larger than all that is rounded up."""


def make_model(folder, device, kind="qwen3", **changes):
    """Save a random model, made on the device in bfloat16, with the tokenizer that ships with the package."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **changes})
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with quiet():
        model.save_pretrained(folder)
    for file in TINY.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder)
    return folder


def base_of(folder, device, quantization="nf4", compute_dtype="bfloat16", **options):
    """A base over a model, whose policy has learnt something."""
    spec = BaseSpec(str(folder), device=str(device), compute_dtype=compute_dtype, **held_as(quantization))
    base = SharedBase(spec, LoraSpec(r=8, alpha=16), **options)
    stir(base, POLICY)
    return base


def stir(base, role):
    """Give a role's adapter and head an effect, the same on each device."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.roles.parameters(role):
            parameter.copy_(0.03 * torch.randn(parameter.shape, generator=generator))


def rows_of(count=8, length=48, prompt=24, each=4):
    """Ids [count, length], of which `each` rows have the same prompt, and which tokens are actions; on the CPU."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (count, length), generator=generator)
    ids[:, :prompt] = ids[::each, :prompt].repeat_interleave(each, 0)[:count]
    actions = torch.zeros_like(ids, dtype=torch.bool)
    actions[:, prompt:] = True
    return ids, actions


def logps_of(base, ids, actions, shared=None):
    """Log-probabilities of the policy for actions, on the CPU."""
    with torch.no_grad(), base.role(POLICY, train=False):
        hidden = base.forwards.hidden(ids.to(base.device), shared=shared)
        return base.forwards.logps(hidden, ids, actions)[0][actions.to(base.device)].cpu()


def gradients_of(base, ids, actions, shared=None):
    """Log-probabilities of the policy for actions, and the gradient of their sum in its adapter, on the CPU."""
    with base.training([POLICY]) as parameters, base.role(POLICY):
        hidden = base.forwards.hidden(ids.to(base.device), shared=shared)
        logps = base.forwards.logps(hidden, ids, actions)[0]
        gradients = torch.autograd.grad(logps.sum(), parameters)
    flat = torch.cat([gradient.flatten().double().cpu() for gradient in gradients])
    return logps[actions.to(base.device)].detach().cpu(), flat


def verified(base, name):
    """Whether a fast path was compared with the plain one and found equal."""
    found = [same for (path, _), same in base.forwards._fast._verified.items() if path == name]
    return bool(found) and all(found)


def requests(prompts, rows, tokens):
    """Requests of `rows` rows each for prompts of unequal length."""
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, VOCABULARY, (9 + 3 * i,), generator=generator) for i in range(prompts)]
    return [
        Request(ids[i // rows], i // rows, i, SamplingParams(max_new_tokens=max(4, tokens - i % 5)))
        for i in range(prompts * rows)
    ]


def sampled(base, asked):
    """The rollout of some requests, by the sampler `cached`."""
    sampler = REGISTRY.make("samplers", "cached", {"max_new_tokens": 64})
    sampler.sync(BaseView(base), 0)
    return sampler.sample(asked)


def with_rewards(document):
    """The recipe with a reward that differs from row to row, where no reward model gives it."""
    for stage in document["stages"]:
        if stage["stage"] == "rl" and stage["rewards"][0]["name"] != "learned":
            stage["rewards"] = [{"name": "even"}]
    return document


def run(document, device, **options):
    """Run a recipe on the device; returns the run's folder and the metrics of its steps."""
    registry = registry_of()
    recipe = load({**with_rewards(document), "device": str(device)}, (), plugins=registry)
    folder = rlhf_peft.run(recipe, registry=registry, overwrite=True, **options).folder
    return folder, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
