"""Every hook, and every protocol and view that a plugin meets, on one page; that of quantizers is in `kit.quantizer`.

A plugin registers choices (rewards, samplers, algorithms, datasets, quantizers) by name, and may listen to a run. A
recipe chooses by name. `HOOK_API` grows within a major version; what goes is deprecated first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import pluggy
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .types import (
    Batch,
    EnvironmentStep,
    MemoryNeeds,
    Minibatch,
    Outputs,
    Request,
    RewardBatch,
    Rollout,
    SamplingParams,
    Scores,
    Selection,
)

HOOK_API = 1
PROJECT = "rlhf_peft"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Options(BaseModel):
    """Base of every plugin's options: unknown keys are refused, every field is described."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Factory = Callable[[Any], Any]
"""Called with a validated instance of its own `Options`; returns the reward, sampler, algorithm, dataset or
quantizer.

One with `wants_make = True` is also given `make(kind, name, options)`, to make what it wraps.
"""

Register = Callable[[str, Factory], None]


# --- views: what plugins are given -----------------------------------------------------------------------------------


class TokenDecoder(Protocol):
    """Rows that are being decoded, one token a step.

    Attributes:
        logits: [B, V] after what every row has so far; at the beginning, after its prompt.
    """

    logits: Tensor

    def step(self, tokens: Tensor) -> Tensor:
        """Give each row one more token, [B] int64; returns the logits [B, V] after it."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone: [B'] int64, numbered among the present ones."""
        ...

    def should_compact(self, going: int, rows: int) -> bool:
        """Whether it pays to `keep` those `going` rows, of the present `rows`, that have not ended."""
        ...


class PolicyView(Protocol):
    """The policy as a sampler sees it.

    Attributes:
        device: of the model.
        pad_id: what padding holds; it may equal an EOS.
        eos_ids: tokens that end a completion.
        max_length: longest row in tokens, prompt included.
        vocab_size: tokens that there are.
    """

    device: torch.device
    pad_id: int
    eos_ids: frozenset[int]
    max_length: int
    vocab_size: int

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some tokens, special tokens left out."""
        ...

    def decoder(self) -> AbstractContextManager[nn.Module]:
        """The policy as a transformers causal LM in eval mode, ready for `forward(input_ids, attention_mask,
        position_ids)` and for `generate`. It has dense merged weights where memory allows, and is the 4-bit base with
        its adapter where not. Only valid inside the context.
        """
        ...

    def can_decode(self, model: nn.Module) -> bool:
        """Whether `start_decoding` works for the model: whether it keeps keys and values and nothing else.

        Args:
            model: as `decoder` gives it, inside its context.
        """
        ...

    def start_decoding(self, model: nn.Module, prompts: Sequence[Sequence[int]], room: int) -> TokenDecoder:
        """Read the prompts, and be ready to take tokens.

        Args:
            model: as `decoder` gives it, inside its context.
            prompts: B rows of token ids; equal ones are read once.
            room: most tokens that a row will be given.
        """
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the policy's adapter in PEFT's format, for samplers that run elsewhere."""
        ...


class RunView(Protocol):
    """A run as an observer sees it."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]


class Prompt(Protocol):
    """One row of the prompt dataset, encoded."""

    @property
    def ids(self) -> Tensor:
        """[P] int64, not padded."""
        ...

    @property
    def columns(self) -> Mapping[str, Any]:
        """The dataset's row, `prompt` among them."""
        ...

    @property
    def index(self) -> int:
        """Number of the row, counted from 0."""
        ...


class RequestContext(Protocol):
    """What an algorithm needs to make requests."""

    params: SamplingParams

    @property
    def round(self) -> int:
        """0 for the first prompts of an iteration; more where `Algorithm.select` wanted more."""
        ...

    def seed(self, group: int, sample: int) -> int:
        """The seed of the `sample`-th completion of the `group`-th prompt of this round."""
        ...


class SampleContext(Protocol):
    """What a sampler may ask of the stage while it samples."""

    def score(self, rollout: Rollout) -> Tensor:
        """[N] float32, the weighted sum of the stage's rewards on these rows; NaN where all abstained."""
        ...


# --- protocols: what plugins bring -----------------------------------------------------------------------------------


@runtime_checkable
class Reward(Protocol):
    """Scores completions.

    Attributes:
        roles: what is computed before `score`: prefixes of heads ("reward" gives every `reward-*` in `batch.heads`),
            and "base" or "reference" (log-probabilities in `batch.logps`).
        timeout: seconds for one batch, or None; the recipe's own counts before it.

    A reward that gives figures in `Scores.metrics` names them, with their formulas, in a class attribute `metrics`.

    An `async def score` runs in the run's process, on one event loop, beside the forwards. A plain `def score`, and a
    function, sync or async, runs in a worker process, killed at the timeout: the factory must be importable by name,
    options and columns JSON; of the batch it lacks `heads`, `logps` and `rollout.sampler_logps`. With
    `in_process = True` on the class or in the recipe's entry, with roles, or where it cannot be imported, it runs on
    the main thread after the forwards. In the run's process the current folder and torch's settings are put back after
    each call, and `os._exit` raises an error. A thread that ends the process later, or C code that does, is not caught.
    `close()`, sync or async, is called at the end, on that loop.
    """

    roles: tuple[str, ...]
    timeout: float | None

    def score(self, batch: RewardBatch) -> Scores | Awaitable[Scores]:
        """One score for each row; NaN abstains."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Writes completions.

    One that needs something outside, such as a server, may also have `ready()`: it is called before the model is
    loaded, and raises SamplerError where that is not there. It is not called where recipes are only checked.

    Attributes:
        provides: of "logps" (sampler_logps are filled), "row_seeds" (a row depends on its seed alone), "on_policy"
            (rows are draws from the policy's own distribution at the params' temperature: what ratios need).
        params: what a request asks for where the algorithm does not say otherwise.
    """

    provides: frozenset[str]
    params: SamplingParams

    def sync(self, policy: PolicyView, version: int) -> None:
        """Take the policy's present weights; called before each iteration."""
        ...

    def sample(self, requests: Sequence[Request], context: SampleContext | None = None) -> Rollout:
        """One row for each request, in order; `context` is there where a stage with rewards asks."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """What a reward or a sampler may also be: its state is saved with every checkpoint, and given back at a resume."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        ...


@runtime_checkable
class DeclaresMemory(Protocol):
    """What a factory may also be: one that says what its product needs of the device's memory.

    One with `wants_make = True` is also given `memory(kind, name, options)`, to ask about what it wraps.
    """

    def memory(self, options: Any) -> MemoryNeeds:
        """The needs of what the factory would make; nothing is made or loaded.

        Args:
            options: a validated instance of the factory's `Options`.
        """
        ...


@runtime_checkable
class Closeable(Protocol):
    """What a reward may also be: it is closed when the stage ends, however it ends."""

    def close(self) -> Awaitable[None] | None:
        """Release what it has opened; may be a coroutine function."""
        ...


@runtime_checkable
class WrappingSampler(Protocol):
    """What a sampler may also be: one that chooses among what another sampler has drawn.

    Attributes:
        inner: the other sampler, which answers where there are no rewards to choose by.
    """

    inner: Sampler


@runtime_checkable
class Algorithm(Protocol):
    """Turns batches into a loss; sees tensors only.

    Attributes:
        roles: of "policy", "reference", "value": what must be in memory.
        needs: of "old_logps" (log-probabilities before `prepare`; ratios have them in any case), "entropy" (in `loss`,
            with its gradient), "on_policy" (rows drawn from the policy's own distribution).
        value: trunk of the value head: "own", "policy" or "reward"; None where there is no value role.
        epochs: passes over a rollout.
        minibatches: updates in one pass.
        metrics: name to formula, for every figure that `loss`, `prepare` or `step_end` log.
    """

    roles: tuple[str, ...]
    needs: frozenset[str]
    value: Literal["own", "policy", "reward"] | None
    epochs: int
    minibatches: int
    metrics: ClassVar[Mapping[str, str]]

    def requests(self, prompts: Sequence[Prompt], context: RequestContext) -> list[Request]:
        """What to sample for these prompts."""
        ...

    def select(self, batch: Batch, round: int) -> Selection:
        """Which rows to train on, and whether more prompts are wanted first."""
        ...

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Advantages and whatever else the loss needs, each [N] or [N, T], and figures to log.

        `batch.train` says which rows will be trained on.
        """
        ...

    def minibatch_units(self, batch: Batch) -> Tensor:
        """[N] int64; rows with the same number are never split over minibatches or micro-batches."""
        ...

    def no_gradient(self, batch: Batch) -> Tensor:
        """[N] bool, rows whose terms are 0 whatever the policy does: no forward is spent on them.

        `batch.columns` is what `prepare` gave.
        """
        ...

    def weights(self, minibatch: Minibatch) -> Tensor:
        """[n, T] weight of each term; the loss is the weighted sum of the terms over the whole minibatch."""
        ...

    def loss(self, outputs: Outputs, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Terms [n, T] (or [n], one a row) and figures to log, each [n, T] or [n], averaged over what is real."""
        ...

    def step_end(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Takes the step's metrics; adapts coefficients; returns figures to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """A registered dataset: rows in one of TRL's formats."""

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """The rows, the same each time."""
        ...


@runtime_checkable
class Environment(Protocol):
    """One conversation with the model, over several turns; each conversation has an instance of its own.

    A sampler knows one turn, an environment knows the conversation. Nothing that a model may write makes `step` raise:
    a call of a tool that is not there is answered by a message that says so.

    Attributes:
        tools: JSON schemas of the tools that the model may call, as chat templates take them; None: there are none.
        metrics: name to formula, for every figure that `step` gives.
    """

    tools: Sequence[Mapping[str, Any]] | None
    metrics: ClassVar[Mapping[str, str]]

    def start(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
        """Begin a conversation.

        Args:
            row: of the dataset, `prompt` among its columns.

        Returns:
            Messages that the model answers first; None: the row's prompt.
        """
        ...

    def step(self, message: Mapping[str, Any]) -> EnvironmentStep:
        """Answer the model's message.

        Args:
            message: `role`, `content` and, where the model has called tools, `tool_calls`.
        """
        ...

    def close(self) -> None:
        """Release what the conversation holds; it may be called twice."""
        ...


# --- hooks: choose one by name ---------------------------------------------------------------------------------------


class HookSpecs:
    """The hooks; implement any of them as a module-level function marked with `hookimpl`."""

    @hookspec
    def rlhf_peft_register_rewards(self, register: Register) -> None:
        """Offer rewards: `register(name, factory)`; the factory makes a `Reward`."""

    @hookspec
    def rlhf_peft_register_samplers(self, register: Register) -> None:
        """Offer samplers: `register(name, factory)`; the factory makes a `Sampler`."""

    @hookspec
    def rlhf_peft_register_algorithms(self, register: Register) -> None:
        """Offer RL algorithms: `register(name, factory)`; the factory makes an `Algorithm`."""

    @hookspec
    def rlhf_peft_register_datasets(self, register: Register) -> None:
        """Offer datasets: `register(name, factory)`; the factory makes a `Dataset`."""

    @hookspec
    def rlhf_peft_register_environments(self, register: Register) -> None:
        """Offer environments: `register(name, factory)`; the factory makes an `Environment`, one a conversation."""

    @hookspec
    def rlhf_peft_register_quantizers(self, register: Register) -> None:
        """Offer quantizers: `register(name, factory)`; the factory makes a `Quantizer` of `kit.quantizer`."""

    # --- told by broadcast ---

    @hookspec
    def rlhf_peft_run_start(self, run: RunView) -> None:
        """A run begins, its data and model can be used; its folder exists."""

    @hookspec
    def rlhf_peft_rollout_end(self, run: RunView, stage: str, step: int, batch: Batch) -> None:
        """A step's completions have their scores; the update follows."""

    @hookspec
    def rlhf_peft_step_end(self, run: RunView, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """An update of any stage is done; these figures were logged."""

    @hookspec
    def rlhf_peft_checkpoint_saved(self, run: RunView, stage: str, step: int, folder: Path) -> None:
        """A stage's adapters or a checkpoint were written."""

    @hookspec
    def rlhf_peft_run_end(self, run: RunView, status: str, metrics: Mapping[str, float]) -> None:
        """A run ended: `done`, `failed` or `stopped`; the last figures."""


REGISTERS = ("rewards", "samplers", "algorithms", "datasets", "environments", "quantizers")
"""What plugins register; the hook of each is `rlhf_peft_register_<kind>`."""
