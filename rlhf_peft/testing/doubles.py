"""Test doubles for what a run gives its plugins: a policy, requests, rollouts, batches, contexts.

Everything is small, made in milliseconds, and the same for the same arguments. Tokens are numbers below `VOCABULARY`;
0 is padding, 1 is EOS, the others are the letters of `FakePolicy.decode`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..types import Batch, Request, RewardBatch, Rollout, SamplingParams

VOCABULARY = 32
PAD, EOS = 0, 1
LETTERS = "··abcdefghijklmnopqrstuvwxyz .,!"


class FakePolicy:
    """A `PolicyView` over a causal LM with random weights: one layer, 32 tokens, no download.

    Args:
        seed: of its weights; another seed is another policy.
        max_length: longest row.
    """

    def __init__(self, seed: int = 0, max_length: int = 64) -> None:
        self.device = torch.device("cpu")
        self.pad_id, self.eos_ids, self.max_length = PAD, frozenset({EOS}), max_length
        self.vocab_size = VOCABULARY
        self.entered = 0
        self._model = _tiny_llama(seed, max_length)

    def decode(self, ids: Sequence[int]) -> str:
        """The letters of some tokens; padding and EOS are left out."""
        return "".join(LETTERS[int(i)] for i in ids if int(i) not in (PAD, EOS))

    @contextmanager
    def decoding(self) -> Iterator[Any]:
        """The model in eval mode as a `DecodingModel`; its weights must not be changed inside the block."""
        from ..engine.decoding import DecodingModel  # transformers and PEFT are slow to import

        self.entered += 1
        with torch.inference_mode():
            yield DecodingModel(self._model.eval(), self.pad_id, self.max_length)

    def save_adapter(self, folder: Path) -> None:
        """Write a folder in PEFT's format with one small pair of matrices."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        weights = {name.format("A"): torch.zeros(2, 16), name.format("B"): torch.zeros(16, 2)}
        save_file(weights, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")

    def logps(self, ids: Tensor, temperature: float = 1.0) -> Tensor:
        """The log-probability of each token given those before it, [T] float32; 0 for the first."""
        with self.decoding() as decoding:
            logits = decoding.lm(input_ids=ids.unsqueeze(0)).logits[0, :-1].float() / temperature
        token_logps = torch.log_softmax(logits, -1).gather(-1, ids[1:].unsqueeze(-1)).squeeze(-1)
        return torch.cat([torch.zeros(1), token_logps])

    def weights(self) -> list[Tensor]:
        """A copy of all weights."""
        return [parameter.detach().clone() for parameter in self._model.parameters()]


def _tiny_llama(seed: int, max_length: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        initializer_range=0.4,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class FakePrompt:
    """A `Prompt` from given values."""

    ids: Tensor
    columns: Mapping[str, Any]
    index: int


@dataclass
class FakeRequestContext:
    """A `RequestContext`; seeds differ for every group, sample and round."""

    params: SamplingParams = field(default_factory=lambda: SamplingParams(8))
    round: int = 0
    base: int = 0

    def seed(self, group: int, sample: int) -> int:
        """A different seed for each completion."""
        return self.base + 1_000_000 * self.round + 1_000 * group + sample


@dataclass
class FakeSampleContext:
    """A `SampleContext` that counts its `calls`; a row's score is its number of distinct tokens divided by 10."""

    calls: int = 0

    def score(self, rollout: Rollout) -> Tensor:
        """The scores of the rows, [N] float32."""
        self.calls += 1
        counts = [len(set(rollout.completion_ids(i))) for i in range(len(rollout))]
        return torch.tensor(counts, dtype=torch.float32) / 10.0


@dataclass
class FakeRun:
    """A `RunView` over a folder."""

    folder: Path
    name: str = "fake"
    recipe: Mapping[str, Any] = field(default_factory=dict)


def make_prompts(count: int = 4, seed: int = 0) -> list[FakePrompt]:
    """Prompts of different lengths, with the columns of a row."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for index in range(count):
        ids = torch.randint(2, VOCABULARY, (3 + index % 3,), generator=generator)
        prompts.append(FakePrompt(ids, {"prompt": _text(ids), "answer": str(index)}, index))
    return prompts


def make_requests(
    count: int = 6, per_group: int = 2, params: SamplingParams | None = None, seed: int = 0
) -> list[Request]:
    """Requests of `count` rows, `per_group` for each prompt, every row with a seed of its own."""
    prompts = make_prompts(-(-count // per_group))
    context = FakeRequestContext(params or SamplingParams(8), base=seed)
    return [
        Request(p.ids, g, context.seed(g, k), context.params, columns=p.columns)
        for g, p in enumerate(prompts)
        for k in range(per_group)
    ][:count]


def make_rollout(requests: Sequence[Request] | None = None, seed: int = 0, *, empty: bool = False) -> Rollout:
    """Random completions of 1 to `max_new_tokens` tokens for the requests.

    Args:
        requests: default: six rows in three groups.
        seed: of the completions.
        empty: the last row's completion is EOS alone.
    """
    rows = list(requests) if requests is not None else make_requests()
    generator = torch.Generator().manual_seed(seed)
    completions = [_completion(r.params.max_new_tokens, generator) for r in rows]
    if empty:
        completions[-1] = torch.tensor([EOS])
    ids = [torch.cat([r.prompt_ids, c]) for r, c in zip(rows, completions, strict=True)]
    names = list(dict.fromkeys(name for r in rows for name in r.columns))
    return Rollout(
        input_ids=ids,
        action_mask=[torch.arange(len(i)) >= len(r.prompt_ids) for r, i in zip(rows, ids, strict=True)],
        finish=["eos" if int(c[-1]) == EOS else "length" for c in completions],
        group=torch.tensor([r.group for r in rows]),
        tag=[r.tag for r in rows],
        columns={name: [r.columns.get(name) for r in rows] for name in names},
        version=1,
    )


def _completion(most: int, generator: torch.Generator) -> Tensor:
    length = int(torch.randint(1, most + 1, (1,), generator=generator))
    ids = torch.randint(2, VOCABULARY, (length,), generator=generator)
    if length < most:
        ids[-1] = EOS
    return ids


def make_batch(
    rollout: Rollout | None = None,
    scores: Sequence[float] | Tensor | None = None,
    seed: int = 0,
    pad: int = 0,
) -> Batch:
    """A batch of a rollout in which scores, log-probabilities, values and entropies are all set.

    Args:
        rollout: default: `make_rollout()`.
        scores: [N]; default: random.
        seed: of the random values.
        pad: columns of padding beyond the longest row.
    """
    rows = rollout if rollout is not None else make_rollout()
    generator = torch.Generator().manual_seed(seed)
    batch = Batch.of(rows)
    batch.mask = mask = nn.functional.pad(batch.mask, (0, pad))
    draw = {
        name: torch.rand(mask.shape, generator=generator)
        for name in ("logps", "ref_logps", "values", "entropy")
    }
    drawn = torch.randn(len(rows), generator=generator)
    row_scores = drawn if scores is None else torch.as_tensor(scores, dtype=torch.float32)
    where = {name: torch.where(mask, value, 0.0) for name, value in draw.items()}
    batch.scores, batch.components = row_scores, {"fake": row_scores}
    batch.old_logps = -0.1 - where["logps"] * mask
    batch.ref_logps = -0.1 - where["ref_logps"] * mask
    batch.values, batch.entropy = where["values"], where["entropy"]
    return batch


def make_reward_batch(
    completions: Sequence[str] | None = None,
    prompts: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    per_group: int = 2,
    conversational: bool = False,
    seed: int = 0,
    step: int = 1,
) -> RewardBatch:
    """A batch for rewards, with heads `reward-0` and `reward-1` and log-probabilities of "base" and "reference".

    Args:
        completions: text; default: four short ones, one of them empty.
        prompts: text, one for each completion; default: one for each group.
        columns: further columns, one value a completion; default: `answer` and `solution`.
        per_group: completions of one prompt.
        conversational: prompts and completions as lists of messages.
        seed: of the generator, the heads and the log-probabilities.
        step: the update.
    """
    texts = (
        list(completions)
        if completions is not None
        else ["the answer is 4", "no", "", "a fox, a fox, a fox."]
    )
    prompt_list = (
        list(prompts) if prompts is not None else [f"question {i // per_group}" for i in range(len(texts))]
    )
    if conversational:
        prompt_list = [[{"role": "user", "content": p}] for p in prompt_list]
    more = columns if columns is not None else {name: ["4"] * len(texts) for name in ("answer", "solution")}
    ids = [[2 + (ord(letter) % (VOCABULARY - 2)) for letter in text] + [EOS] for text in texts]
    rollout = _rollout_of(ids, per_group, {"prompt": prompt_list, **{k: list(v) for k, v in more.items()}})
    generator = torch.Generator().manual_seed(seed)
    shape = (len(ids), int(rollout.lengths.max()) if ids else 0)
    mask = nn.utils.rnn.pad_sequence(rollout.action_mask, batch_first=True) if ids else torch.zeros(shape)
    return RewardBatch(
        prompts=prompt_list,
        completions=[[{"role": "assistant", "content": t}] for t in texts] if conversational else texts,
        completion_ids=ids,
        finish=list(rollout.finish),
        columns=dict(rollout.columns),
        rollout=rollout,
        heads={f"reward-{i}": torch.randn(len(ids), generator=generator) for i in range(2)},
        step=step,
        generator=torch.Generator().manual_seed(seed),
        logps={name: -torch.rand(shape, generator=generator) * mask for name in ("base", "reference")},
    )


def _rollout_of(ids: Sequence[Sequence[int]], per_group: int, columns: dict[str, list[Any]]) -> Rollout:
    prompt = [2, 3]
    return Rollout(
        input_ids=[torch.tensor(prompt + list(row)) for row in ids],
        action_mask=[torch.tensor([False] * len(prompt) + [True] * len(row)) for row in ids],
        finish=["eos"] * len(ids),
        group=torch.arange(len(ids)) // per_group,
        tag=["sample"] * len(ids),
        columns=columns,
        version=1,
    )


def _text(ids: Tensor) -> str:
    return "".join(LETTERS[int(i)] for i in ids)
