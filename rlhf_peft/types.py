"""The values that pass between the stages and the plugins.

Letters: N rows of a rollout, n rows of a minibatch, T tokens of the longest row (prompt and completion), P tokens of
one prompt. Everything is indexed by the position of a token in its row: `logps[i, t]` is the log-probability of
token t given the tokens before it; `values[i, t]` is the value of the state before token t is taken. Rows are padded
on the right; a mask, never a token id, says which positions are real.

Left out on purpose: anything that holds a model. What a plugin may do with a model stands in `hookspecs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
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
    """

    prompt_ids: Tensor
    group: int
    seed: int
    params: SamplingParams
    tag: str = "sample"
    columns: Mapping[str, Any] = field(default_factory=dict)


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
    def cat(cls, parts: Sequence[Rollout], *, groups: Literal["keep", "renumber"] = "renumber") -> Rollout:
        """One rollout of the rows of several, in order.

        Args:
            parts: at least one.
            groups: renumber: groups of different parts get different numbers; keep: numbers stay as they are.
        """
        if len(parts) == 1:
            return parts[0]
        numbers, first = [], 0
        for part in parts:
            numbers.append(part.group + (first if groups == "renumber" else 0))
            first = int(numbers[-1].max()) + 1
        names = list(dict.fromkeys(name for part in parts for name in part.columns))
        logps = [part.sampler_logps for part in parts]
        return cls(
            input_ids=[ids for part in parts for ids in part.input_ids],
            action_mask=[mask for part in parts for mask in part.action_mask],
            finish=[word for part in parts for word in part.finish],
            group=torch.cat(numbers),
            tag=[tag for part in parts for tag in part.tag],
            columns={
                name: [value for part in parts for value in part.columns.get(name, [None] * len(part))]
                for name in names
            },
            sampler_logps=None if None in logps else [row for part in logps for row in part or ()],
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
        dataset_rows: N numbers of the dataset's rows, counted from 0, for messages; None: not known.
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
    dataset_rows: list[int] | None = None

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
class Batch:
    """The rows of one RL step; it grows as the stage computes more of them.

    What was not computed yet, or what the algorithm did not name in `roles` and `needs`, is None or empty. Tensors
    [N, T] are on the CPU and are 0 where no action is, or hold anything there: the mask says what is real.

    Attributes:
        rollout: the rows.
        mask: [N, T] bool, actions.
        owner: [N] int64, the process that has sampled each row and computes its gradient.
        dataset_rows: N numbers of the dataset's rows, counted from 0, for messages.
        old_logps: [N, T] the trainer's own log-probabilities before the update; a row is NaN where they were not
            computed, for the one update that is made gives them for the rows that it trains on.
        entropy: [N, T] in nats, before the update; NaN likewise.
        ref_logps: [N, T] of the reference.
        values: [N, T] before the update.
        heads: reward role to the output [N] of its head.
        role_logps: "base" or "reference" to [N, T] log-probabilities at temperature 1, for rewards that ask for them.
        value_hidden: N tensors [T_i, H] of the frozen reward trunk, where the value head stands on it; empty for rows
            of other processes.
        scores: [N] float32, weighted sum of the rewards; NaN where no reward has given a score.
        token_scores: [N, T] float32, weighted sum of per-token rewards, or None.
        components: reward name to its scores [N], as the reward gave them.
        extra: name to N values that rewards want to be shown beside the samples.
        metrics: figures that the rewards logged.
        train: [N] bool, rows that are trained on; all rows until the algorithm has selected.
        zero_loss: [N] bool, rows that are not trained on but count as rows whose loss is 0; None: there are none.
        columns: what the algorithm prepared: name to [N] or [N, T].
    """

    rollout: Rollout
    mask: Tensor
    owner: Tensor
    scores: Tensor
    train: Tensor
    dataset_rows: list[int] | None = None
    old_logps: Tensor | None = None
    entropy: Tensor | None = None
    ref_logps: Tensor | None = None
    values: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    role_logps: dict[str, Tensor] = field(default_factory=dict)
    value_hidden: list[Tensor] | None = None
    token_scores: Tensor | None = None
    components: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    zero_loss: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, rollout: Rollout, *, owner: int = 0, dataset_rows: Sequence[int] | None = None) -> Batch:
        """A batch of a rollout, of which nothing else is known yet."""
        return cls(
            rollout=rollout,
            mask=torch.nn.utils.rnn.pad_sequence(rollout.action_mask, batch_first=True, padding_value=False),
            owner=torch.full((len(rollout),), owner, dtype=torch.int64),
            scores=torch.full((len(rollout),), float("nan")),
            train=torch.ones(len(rollout), dtype=torch.bool),
            dataset_rows=None if dataset_rows is None else list(dataset_rows),
        )

    def __len__(self) -> int:
        return len(self.rollout)

    @property
    def sampler_logps(self) -> Tensor | None:
        """[N, T] log-probabilities as the sampler computed them, 0 where no action is; None where it gave none."""
        if self.rollout.sampler_logps is None:
            return None
        padded = torch.nn.utils.rnn.pad_sequence(list(self.rollout.sampler_logps), batch_first=True)
        return torch.nn.functional.pad(padded, (0, self.mask.shape[1] - padded.shape[1]))

    def rows(self, index: Sequence[int]) -> Batch:
        """Some of the rows, as wide as all of them, with the metrics of all."""
        chosen = list(index)
        values: dict[str, Any] = {f.name: _rows_of(getattr(self, f.name), chosen) for f in fields(self)}
        return Batch(**{**values, "metrics": self.metrics})

    @classmethod
    def cat(cls, parts: Sequence[Batch], *, groups: Literal["keep", "renumber"] = "renumber") -> Batch:
        """The rows of several batches, in order, padded to the longest.

        What one part lacks is None in the whole. Metrics are averaged over the rows of the parts that have them; a
        share of rows that abstained, or that a reward failed on, counts as 0 where a part does not have it.

        Args:
            parts: at least one.
            groups: as in `Rollout.cat`.
        """
        if len(parts) == 1:
            return parts[0]
        width, counts = max(part.mask.shape[1] for part in parts), [len(part) for part in parts]
        names = [f.name for f in fields(cls) if f.name not in ("rollout", "metrics")]
        return cls(
            rollout=Rollout.cat([part.rollout for part in parts], groups=groups),
            metrics=_mean_metrics([part.metrics for part in parts], counts),
            **{name: _joined([getattr(part, name) for part in parts], width, counts) for name in names},
        )


def _rows_of(value: Any, index: list[int]) -> Any:
    """Some rows of one attribute of a batch."""
    if value is None:
        return None
    if isinstance(value, Rollout):
        return value.rows(index)
    if isinstance(value, dict):
        return {name: _rows_of(one, index) for name, one in value.items()}
    if isinstance(value, list):
        return [value[i] for i in index]
    return value[index] if isinstance(value, Tensor) else value


def _joined(values: Sequence[Any], width: int, counts: Sequence[int]) -> Any:
    """One attribute of several batches: tensors [N, T] are padded, lists and mappings are joined."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], dict):
        names = dict.fromkeys(name for value in values for name in value)
        each = {
            name: [v.get(name, [None] * n) for v, n in zip(values, counts, strict=True)] for name in names
        }
        return {name: _joined(parts, width, counts) for name, parts in each.items()}
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    if values[0].dim() == 1:
        return torch.cat(list(values))
    return torch.cat([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values])


def _mean_metrics(parts: Sequence[Mapping[str, float]], counts: Sequence[int]) -> dict[str, float]:
    """Metrics of several batches, weighted by their rows."""
    out = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        share = name.endswith(("/abstained", "/failed"))
        each = [(n, p.get(name, 0.0)) for n, p in zip(counts, parts, strict=True) if share or name in p]
        out[name] = sum(n * value for n, value in each) / sum(n for n, _ in each)
    return out


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are trained on, and how many more prompts are wanted first.

    Attributes:
        train: [N] bool, rows that are trained on.
        more_prompts: prompts to sample in a further round; 0: these rows are enough.
        zero_loss: [N] bool, rows that are not trained on but count as rows whose loss is 0, where a loss is a mean
            over rows; None: there are none.
    """

    train: Tensor
    more_prompts: int = 0
    zero_loss: Tensor | None = None


@dataclass(slots=True)
class Minibatch:
    """The rows of one forward of the update: a micro-batch of a minibatch.

    Attributes:
        mask: [n, T] bool, actions.
        columns: what `prepare` returned, the rows of this micro-batch: name to [n] or [n, T].
        total_tokens: actions of all rows of the minibatch that are trained on, over all micro-batches and processes.
        total_rows: rows of the minibatch, those of `Selection.zero_loss` included.
        old_logps: [n, T] before the update; None where this update is the only one, so that they equal the present
            ones.
        ref_logps: [n, T] or None.
        old_values: [n, T] before the update, or None.
        importance: [n, T] truncated weight between trainer and sampler, or None.
    """

    mask: Tensor
    columns: dict[str, Tensor]
    total_tokens: int
    total_rows: int
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    old_values: Tensor | None = None
    importance: Tensor | None = None


@dataclass(slots=True)
class Outputs:
    """What the policy and value give now, with gradients.

    Attributes:
        logps: [n, T].
        values: [n, T] or None.
        entropy: [n, T] or None.
    """

    logps: Tensor
    values: Tensor | None = None
    entropy: Tensor | None = None


@dataclass(frozen=True, slots=True)
class EnvironmentStep:
    """What an environment says to an answer of the model.

    Attributes:
        messages: JSON; what the model is to answer next, such as the results of the tools that it has called.
        done: the conversation is over.
        reward: of the answer; None: the environment judges nothing here.
        metrics: figures to log, averaged over conversations.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    done: bool = False
    reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What a registered thing needs of the device's memory, for `rlhf-peft plan`.

    Attributes:
        rows_per_prompt: rows that an algorithm samples of each prompt; completions that a sampler draws a request.
        rows_at_once: most rows that a sampler decodes at once; None: all of them.
        shares_prompts: whether a sampler holds a prompt once for all its rows, as `PolicyView.start_decoding` does.
        model_bytes: weights of a model of its own, on the device of the base.
        savings: settings that would need less, as they are typed below the thing's own section: "max_rows=64".
    """

    rows_per_prompt: int = 1
    rows_at_once: int | None = None
    shares_prompts: bool = False
    model_bytes: int = 0
    savings: tuple[str, ...] = ()
