"""What samplers share that write with the run's own model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rlhf_peft.plugin import PolicyView, Request, Rollout, SampleContext, SamplerError, SamplingParams

from . import rows as making
from .options import SamplingOptions
from .rows import Row


def provided(params: SamplingParams, *words: str) -> frozenset[str]:
    """What a sampler provides: these words, and "on_policy" unless tokens of the policy can never be drawn."""
    return frozenset(words) if params.truncated else frozenset({*words, "on_policy"})


class LocalSampler:
    """Writes completions inside the policy's `decoder`; a subclass says how in `write`."""

    name: ClassVar[str]

    def __init__(self, options: SamplingOptions) -> None:
        self.params = options.params
        self.provides = provided(options.params, "logps", "row_seeds")
        self._view: PolicyView | None = None
        self._version = 0

    def sync(self, policy: PolicyView, version: int) -> None:
        """Take the policy; its weights are read when sampling begins."""
        self._view, self._version = policy, version

    def close(self) -> None:
        """Let the policy go."""
        self._view = None

    def sample(self, requests: Sequence[Request], context: SampleContext | None = None) -> Rollout:
        """One completion for each request.

        Raises:
            SamplerError: no policy was given yet, a prompt leaves no room for a token, or the model cannot be used so.
        """
        if self._view is None:
            raise SamplerError(f"sampler {self.name}: sample() before sync().")
        rows = making.start(requests, self._view.max_length, self.name)
        if rows:
            with self._view.decoder() as model:
                self.write(model, self._view, rows)
        return making.rollout(rows, self._version)

    def write(self, model: Any, view: PolicyView, rows: list[Row]) -> None:
        """Write all rows to their end."""
        raise NotImplementedError
