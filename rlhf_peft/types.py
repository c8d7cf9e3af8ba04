"""The values that pass between the stages and the plugins.

Letters: N rows of a rollout, n rows of a minibatch, T tokens of the longest row (prompt and completion), P tokens of
one prompt. Everything is indexed by the position of a token in its row: `logps[i, t]` is the log-probability of
token t given the tokens before it; `values[i, t]` is the value of the state before token t is taken. Rows are padded
on the right; a mask, never a token id, says which positions are real.

Left out on purpose: anything that holds a model. What a plugin may do with a model stands in `hookspecs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is drawn.

    Attributes:
        max_new_tokens: most tokens drawn, EOS included.
        temperature: logits are divided by it; 0 takes the most likely token.
        stop: strings that end a completion (the string is kept).
        top_p: only the likeliest tokens whose probabilities sum to this; 1 keeps all.
        top_k: only so many of the likeliest tokens; 0 keeps all.
        min_p: only tokens at least this share as likely as the likeliest; 0 keeps all.

    Raises:
        ValueError: a stop string is empty, or is no text.
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Check the stop strings."""
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop holds {text!r}; expected text that is not empty")

    @property
    def truncated(self) -> bool:
        """Whether some tokens can never be drawn."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that an algorithm asks a sampler for.

    Attributes:
        prompt_ids: [P] int64, not padded.
        group: rows with the same number answer the same prompt.
        seed: of this row's own random stream.
        params: how to draw.
        tag: free word that the algorithm finds again in the rollout ("sample", "baseline").
        columns: the other columns of the dataset row, given to rewards; `prompt` among them.
        model_inputs: further inputs of the model's forward (images, later).
    """

    prompt_ids: Tensor
    group: int
    seed: int
    params: SamplingParams
    tag: str = "sample"
    columns: Mapping[str, Any] = field(default_factory=dict)
    model_inputs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Rollout:
    """What a sampler returns: one row for each request, in the order of the requests, ragged.

    Attributes:
        input_ids: N tensors [T_i] int64, prompt and completion, EOS included where one was drawn.
        action_mask: N tensors [T_i] bool, True where the policy wrote the token.
        finish: N words: how the row ended.
        group: [N] int64.
        tag: N words, from the requests.
        columns: name to N values, from the requests.
        sampler_logps: N tensors [T_i] float32 as the sampler computed them, 0 where not an action; or None.
        version: the policy version that `sync` announced.
    """

    input_ids: list[Tensor]
    action_mask: list[Tensor]
    finish: list[Finish]
    group: Tensor
    tag: list[str]
    columns: dict[str, list[Any]]
    sampler_logps: list[Tensor] | None = None
    version: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Tensor:
        """[N] int64, tokens of each row, prompt included."""
        return torch.tensor([len(ids) for ids in self.input_ids], dtype=torch.int64)

    @property
    def completion_lengths(self) -> Tensor:
        """[N] int64, tokens that the policy wrote."""
        return torch.tensor([int(mask.sum()) for mask in self.action_mask], dtype=torch.int64)

    def completion_ids(self, row: int) -> list[int]:
        """The tokens that the policy wrote in one row."""
        ids: list[int] = self.input_ids[row][self.action_mask[row]].tolist()
        return ids

    def rows(self, index: Sequence[int]) -> Rollout:
        """The rollout of some of its rows."""
        logps = self.sampler_logps
        return Rollout(
            input_ids=[self.input_ids[i] for i in index],
            action_mask=[self.action_mask[i] for i in index],
            finish=[self.finish[i] for i in index],
            group=self.group[list(index)],
            tag=[self.tag[i] for i in index],
            columns={name: [values[i] for i in index] for name, values in self.columns.items()},
            sampler_logps=None if logps is None else [logps[i] for i in index],
            version=self.version,
        )

    @classmethod
    def cat(cls, parts: Sequence[Rollout]) -> Rollout:
        """One rollout of the rows of several, in order; groups of different parts get different numbers."""
        if len(parts) == 1:
            return parts[0]
        groups, first = [], 0
        for part in parts:
            groups.append(part.group + first)
            first = int(groups[-1].max()) + 1
        names = list(dict.fromkeys(name for part in parts for name in part.columns))
        logps = [part.sampler_logps for part in parts]
        return cls(
            input_ids=[ids for part in parts for ids in part.input_ids],
            action_mask=[mask for part in parts for mask in part.action_mask],
            finish=[word for part in parts for word in part.finish],
            group=torch.cat(groups),
            tag=[tag for part in parts for tag in part.tag],
            columns={
                name: [value for part in parts for value in part.columns.get(name, [None] * len(part))]
                for name in names
            },
            sampler_logps=None if None in logps else [row for given in logps for row in given or ()],
            version=parts[-1].version,
        )


@dataclass(slots=True)
class RewardBatch:
    """What a reward sees.

    Attributes:
        prompts: N prompts, text or a list of messages, as the dataset has them.
        completions: N completions, text, or `[{"role": "assistant", "content": ...}]` where the prompt is messages.
        completion_ids: N lists of token ids.
        finish: N words: how the row ended.
        columns: the other columns of the dataset, name to N values.
        rollout: the rollout itself.
        heads: output of the heads that the reward's `roles` ask for: role name to [N] float32.
        logps: log-probabilities under "base" (the raw model) and "reference", where the reward's `roles` ask for
            them: role name to [N, T] float32, 0 where not an action.
        step: the update that the batch is for, counted from 1; of an evaluation, the updates before it.
        generator: the only source of random numbers that a reward may use.
        updates: updates before the batch; None: one less than `step`. TRL calls it `trainer_state.global_step`.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    finish: list[Finish]
    columns: dict[str, list[Any]]
    rollout: Rollout
    heads: Mapping[str, Tensor]
    step: int
    generator: torch.Generator
    logps: Mapping[str, Tensor] = field(default_factory=dict)
    updates: int | None = None

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def texts(self) -> list[str]:
        """N completions as text."""
        return [c if isinstance(c, str) else "".join(str(m["content"]) for m in c) for c in self.completions]

    @property
    def updates_done(self) -> int:
        """Updates before the batch, as `trainer_state.global_step` of TRL: 0 before the first."""
        return max(0, self.step - 1) if self.updates is None else self.updates


@dataclass(slots=True)
class Scores:
    """What a reward returns.

    Attributes:
        row: [N] float32; NaN abstains.
        token: [N, T] float32 or None; added to the per-token reward.
        metrics: figures to log, under `rewards/<name>/`.
        extra: name to N values, shown beside the samples.
    """

    row: Tensor
    token: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(slots=True)
class Scored:
    """A rollout with all that the stage computed for it; what an algorithm's `select` and `prepare` see.

    Quantities that the algorithm did not name in `roles` and `needs` are None.

    Attributes:
        rollout: the rows.
        mask: [N, T] bool, actions.
        scores: [N] float32, weighted sum of the rewards; NaN where all abstained.
        token_scores: [N, T] float32 or None.
        components: reward name to [N].
        logps: [N, T] the trainer's own log-probabilities before the update ("old").
        ref_logps: [N, T] of the reference.
        values: [N, T] before the update.
        entropy: [N, T] in nats.
    """

    rollout: Rollout
    mask: Tensor
    scores: Tensor
    token_scores: Tensor | None = None
    components: dict[str, Tensor] = field(default_factory=dict)
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    values: Tensor | None = None
    entropy: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rollout)

    def rows(self, index: Sequence[int]) -> Scored:
        """Some of the rows, as wide as all of them."""
        chosen = list(index)

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[chosen]

        return Scored(
            rollout=self.rollout.rows(chosen),
            mask=self.mask[chosen],
            scores=self.scores[chosen],
            token_scores=pick(self.token_scores),
            components={name: values[chosen] for name, values in self.components.items()},
            logps=pick(self.logps),
            ref_logps=pick(self.ref_logps),
            values=pick(self.values),
            entropy=pick(self.entropy),
        )

    @classmethod
    def cat(cls, parts: Sequence[Scored]) -> Scored:
        """The rows of several, in order, padded to the longest."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.mask.shape[1] for part in parts)

        def join(values: Sequence[Tensor | None]) -> Tensor | None:
            there = [value for value in values if value is not None]
            if len(there) < len(values):
                return None
            return torch.cat([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in there])

        mask = join([part.mask for part in parts])
        assert mask is not None
        return cls(
            rollout=Rollout.cat([part.rollout for part in parts]),
            mask=mask,
            scores=torch.cat([part.scores for part in parts]),
            token_scores=join([part.token_scores for part in parts]),
            components={
                name: torch.cat([part.components[name] for part in parts]) for name in parts[0].components
            },
            logps=join([part.logps for part in parts]),
            ref_logps=join([part.ref_logps for part in parts]),
            values=join([part.values for part in parts]),
            entropy=join([part.entropy for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows go on to the update, and how many more prompts are wanted first.

    Attributes:
        keep: [N] bool.
        want: prompts to sample in a further round; 0 is enough.
        silent: [N] bool, rows that are not kept but count as rows whose loss is 0 where a loss is a mean over rows;
            None: there are none.
    """

    keep: Tensor
    want: int = 0
    silent: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Global counts of the minibatch that a loss is normalised by, over all micro-batches and ranks.

    Attributes:
        tokens: actions of the rows that are trained on.
        rows: rows, silent ones (see `Selection`) included.
    """

    tokens: int
    rows: int


@dataclass(slots=True)
class Minibatch:
    """The rows of one forward of the update.

    Attributes:
        mask: [n, T] bool, actions.
        columns: what `prepare` returned, the rows of this minibatch: name to [n] or [n, T].
        logps: [n, T] before the update, or None.
        ref_logps: [n, T] or None.
        old_values: [n, T] before the update, or None.
        importance: [n, T] truncated weight between trainer and sampler, or None.
    """

    mask: Tensor
    columns: dict[str, Tensor]
    logps: Tensor | None = None
    ref_logps: Tensor | None = None
    old_values: Tensor | None = None
    importance: Tensor | None = None


@dataclass(slots=True)
class Outputs:
    """What the policy and value say now, with gradients.

    Attributes:
        logps: [n, T].
        values: [n, T] or None.
        entropy: [n, T] or None.
    """

    logps: Tensor
    values: Tensor | None = None
    entropy: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LoadCode:
    """How other programs load a base as a quantizer holds it; for model cards and for the commands of exports.

    Attributes:
        imports: module to the names that `config` and `after` need.
        config: the Python expression that is given to `from_pretrained` as `quantization_config`.
        after: lines of Python to run when the base is loaded, which they call `base`.
        note: what `after` is for, in a sentence or two; empty where there is nothing to say.
        vllm: arguments with which `vllm serve` quantizes likewise as it loads; empty where it cannot.
        vllm_needs: a shell command that must have been run before; empty: none.
    """

    imports: Mapping[str, Sequence[str]]
    config: str
    after: Sequence[str] = ()
    note: str = ""
    vllm: str = ""
    vllm_needs: str = ""
