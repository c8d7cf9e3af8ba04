"""Protocols of what plugins register; the one of quantizers is in `kit.quantizer`."""

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
        timeout: seconds for one batch, or None; a timeout in the recipe takes precedence.

    A reward that returns metrics in `Scores.metrics` names them, with their formulas, in a class attribute `metrics`.

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
        """One score for each row; NaN where the reward abstains."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Samples completions.

    A sampler that needs something outside, such as a server, may also have a method `ready()`. It is called before the
    model is loaded, and raises SamplerError where that is not available. It is not called while recipes are checked.

    Attributes:
        provides: a subset of "logps" (sampler_logps are set), "row_seeds" (a row depends on its seed alone) and
            "on_policy" (rows are drawn from the policy's own distribution at the temperature of the parameters, which
            ratios need).
        params: the parameters of a request where the algorithm sets no others.
    """

    provides: frozenset[str]
    params: SamplingParams

    def sync(self, policy: PolicyView, version: int) -> None:
        """Use the policy's current weights; called before each step."""
        ...

    def sample(self, requests: Sequence[Request], context: SampleContext | None = None) -> Rollout:
        """Sample one row for each request, in order; `context` is set where a stage with rewards calls it."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A reward or a sampler with a state, which is saved with every checkpoint and loaded when a run is resumed."""

    def state_dict(self) -> dict[str, Any]:
        """The state: tensors and JSON values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        ...


@runtime_checkable
class DeclaresMemory(Protocol):
    """A factory that says how much device memory the object that it makes will need.

    One with `wants_make = True` is also given `memory(kind, name, options)`, to find out what a wrapped object needs.
    """

    def memory(self, options: Any) -> MemoryNeeds:
        """The memory that an object with these options would need; nothing is made or loaded.

        Args:
            options: a validated instance of the factory's `Options`.
        """
        ...


@runtime_checkable
class Closeable(Protocol):
    """A reward that is closed when the stage ends, also after an error."""

    def close(self) -> Awaitable[None] | None:
        """Release all resources; may be a coroutine function."""
        ...


@runtime_checkable
class WrappingSampler(Protocol):
    """A sampler that chooses among the completions of another sampler.

    Attributes:
        inner: the other sampler, which is used alone where there are no rewards to choose by.
    """

    inner: Sampler


@runtime_checkable
class Algorithm(Protocol):
    """Turns batches into a loss; sees tensors only.

    Attributes:
        roles: a subset of "policy", "reference" and "value", which must be in memory.
        needs: a subset of "old_logps" (log-probabilities before `prepare`; ratios have them in any case), "entropy" (in
            `loss`, with its gradient) and "on_policy" (rows drawn from the policy's own distribution).
        value: trunk of the value head: "own", "policy" or "reward"; None where there is no value role.
        epochs: passes over a rollout.
        minibatches: updates in one pass.
        metrics: name to formula, for every metric that `loss`, `prepare` or `step_end` log.
    """

    roles: tuple[str, ...]
    needs: frozenset[str]
    value: Literal["own", "policy", "reward"] | None
    epochs: int
    minibatches: int
    metrics: ClassVar[Mapping[str, str]]

    def requests(self, prompts: Sequence[Prompt], context: RequestContext) -> list[Request]:
        """The requests for completions of these prompts."""
        ...

    def select(self, batch: Batch, round: int) -> Selection:
        """The rows to train on, and how many more prompts are sampled first."""
        ...

    def prepare(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The columns that the loss needs, such as advantages, each [N] or [N, T], and metrics to log.

        `batch.train` says which rows will be trained on.
        """
        ...

    def minibatch_units(self, batch: Batch) -> Tensor:
        """The unit of each row, [N] int64; rows of one unit are never split over minibatches or micro-batches."""
        ...

    def no_gradient(self, batch: Batch) -> Tensor:
        """The rows whose terms are 0 whatever the policy is, [N] bool; no forward is computed for them.

        `batch.columns` is what `prepare` gave.
        """
        ...

    def weights(self, minibatch: Minibatch) -> Tensor:
        """The weight of each term, [n, T]; the loss is the weighted sum of the terms over the whole minibatch."""
        ...

    def loss(self, outputs: Outputs, minibatch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms, [n, T] (or [n], one for each row), and metrics to log, each [n, T] or [n].

        A metric is averaged over real tokens, or over rows.
        """
        ...

    def step_end(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Adapt coefficients to the metrics of a step; returns metrics to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state: tensors and JSON values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """A registered dataset: rows in one of TRL's formats."""

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """The rows, the same each time."""
        ...


@runtime_checkable
class Environment(Protocol):
    """One conversation with the model, over several turns; each conversation has its own instance.

    A sampler writes one turn, an environment leads the conversation. Nothing that a model may write makes `step` raise:
    a call of an unknown tool is answered by a message that says so.

    Attributes:
        tools: JSON schemas of the tools that the model may call, as chat templates take them; None: there are none.
        metrics: name to formula, for every metric that `step` returns.
    """

    tools: Sequence[Mapping[str, Any]] | None
    metrics: ClassVar[Mapping[str, str]]

    def start(self, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
        """Begin a conversation.

        Args:
            row: of the dataset, with `prompt` among its columns.

        Returns:
            The messages that the model answers first; None: those of the row's prompt.
        """
        ...

    def step(self, message: Mapping[str, Any]) -> EnvironmentStep:
        """Answer the model's message.

        Args:
            message: `role`, `content` and, where the model has called tools, `tool_calls`.
        """
        ...

    def close(self) -> None:
        """Release the resources of the conversation; it may be called twice."""
        ...
