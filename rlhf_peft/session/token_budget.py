"""Out of memory: less at once, and the same thing again."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import RlhfPeftError

log = logging.getLogger("rlhf_peft")
Done = TypeVar("Done")


class TokenBudget:
    """How much is done at once; halved, for good, where memory does not suffice.

    Args:
        stage: its name, for messages.
        amount: to begin with; None: everything.
        what: it is an amount of, and what is done with it.
        key: of the recipe that sets it, if one does.

    Attributes:
        amount: at present; None: everything.
    """

    def __init__(
        self,
        stage: str,
        amount: int | None,
        what: str = "tokens in one forward",
        key: str | None = "model.tokens_per_forward",
    ) -> None:
        self.stage, self.amount, self.what, self.key = stage, amount, what, key

    def within(self, attempt: Callable[[int], Done], least: int, most: int) -> Done:
        """What an attempt gives, with as much at once as fits.

        Args:
            attempt: takes the amount; it may be called again, and must then begin anew.
            least: amount of the smallest part: less is of no use.
            most: amount of all there is to do: more is of no use either.

        Raises:
            RlhfPeftError: the smallest part alone does not fit.
        """
        while True:
            amount = most if self.amount is None else self.amount
            try:
                return attempt(amount)
            except (RuntimeError, MemoryError) as error:
                failed = reason(error)
            # Outside of the handler the error, and with it what its frames hold, is gone.
            amount = min(amount, most)
            if amount <= least:
                raise RlhfPeftError(too_little(self.stage, f"{least:,} {self.what}", failed))
            free()
            self.amount = max(least, amount // 2)
            advice = "" if self.key is None else f" To begin so: {self.key}={self.amount}"
            log.warning(
                "%s: out of memory. From here on at most %s %s.%s",
                self.stage,
                f"{self.amount:,}",
                self.what,
                advice,
            )


def reason(error: RuntimeError | MemoryError) -> str:
    """What an error says that means that memory does not suffice; any other error is raised again."""
    if not out_of_memory(error):
        raise error
    return " ".join(str(error).split())[:200] or "no memory"


def too_little(stage: str, what: str, failed: str) -> str:
    """What to tell where even the least does not fit."""
    return f"{stage}: out of memory with {what} ({failed}). `rlhf-peft plan` says what would fit."


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: CUDA's, the CPU allocator's, Python's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return (
        any(word in text for word in ("DefaultCPUAllocator", "ALLOC_FAILED"))
        or "out of memory" in text.lower()
    )


def free() -> None:
    """Give back what is not used any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
