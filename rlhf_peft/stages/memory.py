"""Out of memory: fewer tokens in a forward, and the same thing again."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import RlhfPeftError

log = logging.getLogger("rlhf_peft")
Done = TypeVar("Done")


class Budget:
    """Most tokens in one forward; halved, for good, where memory does not suffice.

    Args:
        stage: its name, for messages.
        tokens: to begin with, padding included.

    Attributes:
        tokens: at present.
    """

    def __init__(self, stage: str, tokens: int) -> None:
        self.stage, self.tokens = stage, tokens

    def within(self, attempt: Callable[[int], Done], longest: int) -> Done:
        """What an attempt gives, with as many tokens as fit.

        Args:
            attempt: takes the number of tokens; it may be called again, and must then begin anew.
            longest: tokens of the longest row; fewer are of no use.

        Raises:
            RlhfPeftError: one row alone does not fit.
        """
        while True:
            failed = None
            try:
                return attempt(self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                failed = " ".join(str(error).split())[:200]
            # Outside of the handler the error, and with it what its frames hold, is gone.
            if self.tokens <= longest:
                raise RlhfPeftError(
                    f"{self.stage}: out of memory with one row of {longest:,} tokens in a forward ({failed}). "
                    "`rlhf-peft plan` says what would fit."
                )
            free()
            self.tokens = max(longest, min(self.tokens, 2**20) // 2)
            log.warning(
                "%s: out of memory. From here on at most %s tokens go into one forward; to begin so: "
                "model.tokens_per_forward=%d",
                self.stage,
                f"{self.tokens:,}",
                self.tokens,
            )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: CUDA's, the CPU allocator's, Python's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text.lower()


def free() -> None:
    """Give back what is not used any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
