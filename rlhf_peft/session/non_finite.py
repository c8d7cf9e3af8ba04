"""Updates whose loss or gradient is not finite: skipped and counted, and too many in a row stop the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from ..errors import GuardError

log = logging.getLogger("rlhf_peft")
Named = tuple[Sequence[str], Sequence[str]]
NAMED = 3
"""Rows that a message names."""


class NonFiniteGuard:
    """Looks at every update before it is taken.

    Args:
        stage: its name, for messages.
        most: updates in a row that may be skipped.

    Attributes:
        in_a_row: updates skipped so far, since the last that was taken.
        taken: whether the last one was.
    """

    def __init__(self, stage: str, most: int) -> None:
        self.stage, self.most = stage, most
        self.in_a_row, self.taken = 0, True

    def allows(self, step: int, loss: float, norm: float, rows: Callable[[], Named]) -> bool:
        """Whether an update may be taken.

        Args:
            step: of the update, for messages.
            loss: of the update.
            norm: of its gradient.
            rows: gives, in words, those whose part of the loss is not finite, and all rows of the update, which are
                named where it is the gradient alone that is not finite. Asked only where an update may not be taken.

        Raises:
            GuardError: it may not be taken, and neither could the `most` updates before it.
        """
        self.taken = math.isfinite(loss) and math.isfinite(norm)
        if self.taken:
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        bad, seen = rows()
        named = f" It comes from {_few(bad)}." if bad else f" It was made of {_few(seen)}." if seen else ""
        message = (
            f"{self.stage} step {step}: the update is not finite (loss {loss}, gradient norm {norm}).{named}"
        )
        if self.in_a_row > self.most:
            raise GuardError(
                f"{message} {self.in_a_row} updates in a row were of no use. Lower learning_rate, look at those rows "
                "and at their rewards in samples.jsonl, or allow more with max_bad_steps."
            )
        log.warning("%s It is skipped.", message)
        return False


def _few(rows: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    distinct = list(dict.fromkeys(rows))
    more = f" and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
    return f"{', '.join(distinct[:NAMED])}{more}"
