"""Counts on a simulated card: per decoded token, per layer, per micro-step and per update."""

import gc
import json
import logging
from collections import Counter
from types import SimpleNamespace

import torch

from rlhf_peft.api import load_base
from rlhf_peft.engine.artifacts import read_role
from rlhf_peft.engine.fast import NAMES
from rlhf_peft.engine.fast.lean import own_tokens
from rlhf_peft.engine.forwards import CHUNK
from rlhf_peft.kit.sampling.local import READ_EVERY, write_rows
from rlhf_peft.kit.sampling.rows import start_rows
from rlhf_peft.kit.upload import upload
from rlhf_peft.recipe import load
from rlhf_peft.session.optimizers import make_optimizer
from rlhf_peft.session.policy_view import BaseView
from rlhf_peft.stages.rl import forwards, update
from rlhf_peft.types import Request, SamplingParams
from tests.dryrun.cases import CASES, CONFIG, rl

LEAN = sorted(set(NAMES) - {"cuda_graphs"})
GRPO = {"name": "grpo", "num_generations": 2}
TOKENS, ROWS = 4 * READ_EVERY, 4


def base_of(folder, registry, layers, **model):
    """A base of so many layers."""
    (folder / "model" / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    recipe = load(rl(GRPO, model)(folder), (), plugins=registry)
    base = load_base(recipe, registry=registry)
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    return base


def rows_of(view, each):
    requests = [
        Request(torch.arange(20, 28), i // 2, i, SamplingParams(tokens)) for i, tokens in enumerate(each)
    ]
    return start_rows(requests, view.max_length, "measure")


def decoded(run, base, merge, each, times=2):
    """Counts of decoding so many tokens of each row, after the prompts were read; the first time paths are compared."""
    view = BaseView(base)
    with base.decoding.as_role("policy", merge) as model:
        for _ in range(times):
            rows = rows_of(view, each)
            decoder = model.start([row.request.prompt_ids.tolist() for row in rows], max(each))
            run.meter.lap()
            before = run.meter.live
            write_rows(decoder, view, rows)
    assert [len(row.tokens) for row in rows] == list(each)
    counts = run.meter.lap()
    counts.peak -= before
    return counts


def updated(run, base, tokens=64):
    """Counts of a forward and a backward pass of the policy, and the bytes that wait for the backward pass."""
    ids = torch.arange(2 * tokens).view(2, tokens) % 500 + 20
    with base.training(["policy"]) as parameters, base.role("policy"):
        for _ in range(2):
            gc.collect()
            run.meter.lap()
            before = run.meter.live
            hidden = base.forwards.hidden(upload(ids, base.device))
            kept = run.meter.live - before
            hidden.sum().backward()
            for parameter in parameters:
                parameter.grad = None
    return run.meter.lap(), kept / (2 * tokens)


def decoding(run, registry, folder):
    """Reads and launches of a decoded token, with dense weights and with 4-bit weights and adapters."""
    out = {}
    for name, merge in (("dense", True), ("4-bit", False)):
        counts = [
            decoded(run, base_of(folder, registry, layers, fast=LEAN), merge, [TOKENS] * ROWS)
            for layers in (1, 2)
        ]
        per_token = [count.launches / TOKENS for count in counts]
        out[name] = {
            "reads_a_token": sum(counts[1].host_reads.values()) / TOKENS,
            "launches_a_layer": per_token[1] - per_token[0],
            "launches_besides": 2 * per_token[0] - per_token[1],
        }
    return out


def captured(run, registry, folder):
    """The same with captured graphs: of a further token, of rows that end at different steps, where capturing fails."""
    out = {}
    for name, merge in (("dense", True), ("4-bit", False)):
        base = base_of(folder, registry, 2)
        few, many = (decoded(run, base, merge, [tokens] * ROWS) for tokens in (TOKENS, 2 * TOKENS))
        lean = decoded(run, base_of(folder, registry, 2, fast=LEAN), merge, [2 * TOKENS] * ROWS)
        out[name] = {
            "launches_a_token": (many.launches - few.launches) / TOKENS,
            "reads_a_token": sum(many.host_reads.values()) / (2 * TOKENS),
            "seconds": [many.seconds, lean.seconds],
            "peak": [many.peak, lean.peak],
        }
    each = [TOKENS, 3 * TOKENS, TOKENS, 2 * TOKENS]
    out["ends"] = decoded(run, base, False, each).kernels["graph"]
    spared, own_tokens.SPARED = own_tokens.SPARED, 5 * 10**6
    out["places"] = decoded(run, base_of(folder, registry, 2, max_length=600), False, [560]).kernels["graph"]
    own_tokens.SPARED = spared
    begin, heard = torch.cuda.CUDAGraph.capture_begin, []
    torch.cuda.CUDAGraph.capture_begin = refuse
    log = logging.getLogger("rlhf_peft")
    listener = logging.Handler()
    listener.emit = lambda record: heard.append((record.levelname, record.getMessage()))
    log.addHandler(listener)
    try:
        failed = decoded(run, base_of(folder, registry, 2), False, [TOKENS] * ROWS, times=3)
    finally:
        torch.cuda.CUDAGraph.capture_begin = begin
        log.removeHandler(listener)
    out["failed"] = {"launches_a_token": failed.launches / TOKENS, "said": heard}
    return out


def refuse(self, pool=None, capture_error_mode="global"):
    raise RuntimeError("CUDA error: operation not permitted")


def refusals(run, registry, folder):
    """What a capture of the simulated card refuses, and the memory that a graph holds."""
    number, host = torch.zeros(1000, device="cuda"), torch.ones(1000)
    does = {
        "item": lambda: number[0].item(),
        "copy to the host": lambda: number.cpu(),
        "copy from the host": lambda: host.to("cuda"),
        "copy into a tensor": lambda: number.copy_(host),
        "tensor from a list": lambda: torch.tensor([1.0], device="cuda"),
        "bool index": lambda: number[number > 0],
        "number": lambda: number.add_(1.0).masked_fill_(number > 2.0, 3.0),
        "new tensor": lambda: torch.where(number > 0, 1.0, number) * torch.arange(1000, device="cuda"),
    }
    out = {}
    for name, function in does.items():
        stream = torch.cuda.Stream()
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
                function()
            out[name] = "captured"
        except RuntimeError as error:
            out[name] = str(error)
    function = None
    before, graph = run.meter.live, torch.cuda.CUDAGraph()
    run.meter.lap()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        kept = number + 1
        kept = kept * 2
    out["launches of a capture"] = run.meter.lap().launches
    out["held"] = run.meter.live - before
    graph.replay()
    out["launches of a replay"] = run.meter.lap().launches
    graph = kept = None
    out["left"] = run.meter.live - before
    return out


def updates(run, registry, folder):
    """Launches and kept bytes of a layer in an update, with and without recomputation."""
    out = {}
    for name, recompute in (("kept", False), ("recomputed", True)):
        both = [
            updated(run, base_of(folder, registry, layers, gradient_checkpointing=recompute))
            for layers in (1, 2)
        ]
        (one, one_kept), (two, two_kept) = both
        out[name] = {
            "launches_a_layer": two.launches - one.launches,
            "bytes_a_token_a_layer": two_kept - one_kept,
            "reads": sum(two.host_reads.values()),
        }
    return out


def reads(run, registry, folder):
    """Reads of the host in each micro-step and each update of a PPO step."""
    per_step, per_update = [], []
    micro_step, whole = update.Updater.micro_step, update.Updater._update

    def count():
        return sum(run.meter.now.host_reads.values())

    def one(self, *given):
        before = count()
        micro_step(self, *given)
        per_step.append(count() - before)

    def all_of(self, *given):
        before = count()
        whole(self, *given)
        per_update.append(count() - before)

    update.Updater.micro_step, update.Updater._update = one, all_of
    try:
        import rlhf_peft

        case = CASES["ppo, value on the policy, not merged"](folder)
        case["model"]["tokens_per_forward"] = 40
        case["stages"][0]["sampler"]["max_new_tokens"] = 6
        case["stages"][0]["max_steps"] = 2
        rlhf_peft.run(load(case, (), plugins=registry), registry=registry, overwrite=True)
    finally:
        update.Updater.micro_step, update.Updater._update = micro_step, whole
    half = len(per_update) // 2  # The first step compares the fast paths.
    return {
        "micro_step": max(per_step[len(per_step) // 2 :]),
        "update": max(per_update[half:]),
        "of": per_update,
    }


def roles(run, registry, folder):
    """How often the host waits for each layer of a base while a role is added as a copy, saved and filled."""
    out = {}
    target = folder / "saved"
    for name, does in (
        ("added", lambda base: base.roles.add("value", like="policy", head=True)),
        ("saved", lambda base: base.roles.save("policy", target)),
        ("filled", lambda base: base.roles.fill("policy", read_role(target)[0], None, "here")),
    ):
        counts = []
        for layers in (1, 2):
            base = base_of(folder, registry, layers)
            base.roles.save("policy", target)
            run.meter.lap()
            does(base)
            counts.append(Counter[str]())
            for (kind, _), count in run.meter.lap().host_reads.items():
                counts[-1][kind] += count
        out[name] = {kind: counts[1][kind] - counts[0][kind] for kind in counts[1]}
    return out


def value_states(run, registry, folder):
    """Bytes that a micro-step copies to the card with the value head on the reward model, by where its states are."""
    import rlhf_peft

    out, micro_step, fit = {}, update.Updater.micro_step, forwards.states_fit
    for name, fits in (("on the card", fit), ("on the CPU", lambda size, device: False)):
        copied = []

        def one(self, *given, copied=copied):
            before = run.meter.now.uploads
            micro_step(self, *given)
            copied.append(run.meter.now.uploads - before)

        case = CASES["reward model"](folder)
        ppo = rl({"name": "ppo", "value": "reward", "num_epochs": 2}, rewards=[{"name": "learned"}])(folder)
        case["stages"] = [{**case["stages"][0], "ensemble": 1}, *ppo["stages"]]
        update.Updater.micro_step, forwards.states_fit = one, fits
        try:
            rlhf_peft.run(load(case, (), plugins=registry), registry=registry, overwrite=True)
        finally:
            update.Updater.micro_step, forwards.states_fit = micro_step, fit
        out[name] = max(copied)
    return out


def log_probabilities(run, registry, folder):
    """Launches, peak and seconds of log-probabilities and entropies of two chunks of tokens, with gradients."""
    out, tokens = {}, 2 * CHUNK
    for name, fast in (("kernels", True), ("operators", sorted(set(NAMES) - {"fused_logprobs"}))):
        base = base_of(folder, registry, 1, fast=fast)
        states = torch.zeros(
            1, tokens + 1, base.loaded.width, device="cuda", dtype=base.dtype, requires_grad=True
        )
        ids, mask = torch.full((1, tokens + 1), 20), torch.ones(1, tokens + 1, dtype=torch.bool)
        for _ in range(2):
            states.grad = None
            run.meter.lap()
            before = run.meter.live
            logps, entropies = base.forwards.logps(states, ids, mask, entropy=True)
            (logps.sum() + entropies.sum()).backward()
            counts = run.meter.lap()
        out[name] = [counts.launches, counts.peak - before, counts.seconds]
    return out


def optimizers(run, registry, folder):
    """Launches and reads of one step of each kind of AdamW, and bytes of its state; the first step makes the state."""
    out = {}
    for layers in (1, 2):
        base = base_of(folder, registry, layers)
        for name in ("adamw", "adamw_8bit"):
            stage = SimpleNamespace(
                optimizer=name, weight_decay=0.01, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8
            )
            with base.training(["policy"]) as parameters:
                optimizer = make_optimizer(stage, [{"params": parameters, "lr": 1e-4}])
                for _ in range(2):
                    for parameter in parameters:
                        parameter.grad = torch.zeros_like(parameter)
                    run.meter.lap()
                    optimizer.step()
                    counts = run.meter.lap()
                for parameter in parameters:
                    parameter.grad = None
            out[f"{name}, {layers}"] = {
                "launches": counts.launches,
                "reads": sum(counts.host_reads.values()),
                "parameters": len(parameters),
                "kernels": dict(counts.kernels),
            }
            optimizer = None
    return out


def merging(run, registry, folder):
    """Whether weights are merged for decoding, by what the recipe says."""
    out = {}
    for name, model in (
        ("by default", {}),
        ("without the lean step", {"fast": ["dense_weights"]}),
        ("asked for", {"merge_rollouts": True}),
    ):
        base = base_of(folder, registry, 1, **model)
        with base.decoding.as_role("policy") as decoding:
            out[name] = any(type(module).__name__ == "Dense" for module in decoding.lm.modules())
    return out


MEASURES = {
    "merging": merging,
    "decoding": decoding,
    "captured": captured,
    "refusals": refusals,
    "updates": updates,
    "reads": reads,
    "log_probabilities": log_probabilities,
    "optimizers": optimizers,
    "value_states": value_states,
    "roles": roles,
}
