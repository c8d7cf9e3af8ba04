"""Protocols: what plugins bring. That of quantizers is in `kit.quantizer`."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from ..types import (
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
from .views import PolicyView, Prompt, RequestContext, SampleContext


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
