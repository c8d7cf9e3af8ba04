"""Every error that this package raises on purpose.

    RlhfPeftError               exit 1   the run failed
    ├── UsageError              exit 2   the user can correct it before anything runs
    │   ├── RecipeError                  one or more problems in a recipe, all at once
    │   ├── DataError                    a dataset is missing, malformed or does not fit
    │   ├── ModelError                   a model, tokenizer, adapter or head cannot be used
    │   ├── PluginError                  a plugin is missing, broken or misused
    │   └── RunFolderError               a run folder exists, is finished or is not a run folder
    ├── RewardError             exit 1   a reward failed while a run was going on
    ├── CheckpointError         exit 1   a checkpoint could not be written; earlier ones are as they were
    ├── SamplerError            exit 1   a sampler gave something that is not a rollout
    └── GuardError              exit 3   a guard stopped the run (non-finite, reference mismatch, KL limit)

A message is one paragraph: the place, what was found, what was expected, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_GUARD = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
EXIT_HUNG_UP = 129


class RlhfPeftError(Exception):
    """Base of all errors of this package; `exit_code` is what the command line exits with."""

    exit_code = EXIT_FAILED


class UsageError(RlhfPeftError):
    """The recipe, an option, a path or the data is wrong; nothing was changed."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a recipe.

    Attributes:
        key: dotted key, such as `stages.rl.algorithm.beta`.
        message: what was found, what was expected, and what to do.
        line: line in the recipe file, counted from 1; None for overrides and defaults.
    """

    key: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        """The problem as text: `key (line N): message`."""
        where = f"{self.key} (line {self.line})" if self.line is not None else self.key
        return f"{where}: {self.message}"


class RecipeError(UsageError):
    """A recipe with one or more problems; nothing was loaded."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}, nothing was loaded."
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class DataError(UsageError):
    """A dataset is missing, malformed, empty or does not fit the stage."""


class ModelError(UsageError):
    """A model, tokenizer, adapter or head cannot be loaded or used as asked."""


class PluginError(UsageError):
    """A plugin is missing, broken, or a name is unknown or taken."""


class RunFolderError(UsageError):
    """A run folder cannot be used as asked."""


class RewardError(RlhfPeftError):
    """A reward raised, timed out, or returned something that is not a score."""


class CheckpointError(RlhfPeftError):
    """A checkpoint could not be written, for example on a full disk; earlier ones are unchanged."""


class SamplerError(RlhfPeftError):
    """A sampler returned something that is not a rollout of its requests."""


class GuardError(RlhfPeftError):
    """A guard stopped the run because going on would waste or spoil it."""

    exit_code = EXIT_GUARD
