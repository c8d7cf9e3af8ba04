"""What `/v1/completions` of a vLLM server has answered, taken apart and checked: a server may say anything."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rlhf_peft.plugin import Finish, SamplerError

ROUNDING = 1e-3
"""Nats above 0 that a log-probability may be."""
LOWEST = -1e6
"""Nats: nothing that was drawn can be as unlikely."""
SHOWN = 200
"""Characters shown of an answer."""


def read_completion(
    where: str, answer: Any, max_tokens: int, vocabulary: int
) -> tuple[list[int], list[float], str]:
    """Token ids, their log-probabilities, and why they ended.

    Args:
        where: begins every message: who has asked which URL.
        answer: as JSON.
        max_tokens: that were asked for.
        vocabulary: tokens that the policy knows.

    Raises:
        SamplerError: it is not the one completion that was asked for.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if isinstance(choices, list) and len(choices) != 1:
        raise SamplerError(f"{where}: one choice was asked for, and {len(choices)} came. {_gave(answer)}")
    try:
        choice = choices[0] if isinstance(choices, list) else {}
        tokens, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    except (KeyError, TypeError):
        tokens = logps = None
    if not _all(tokens, int) or not _all(logps, int, float):
        raise SamplerError(
            f"{where}: the answer has no token_ids with logprobs. vLLM 0.10.2 or later was expected. {_gave(answer)}"
        )
    if not tokens or len(tokens) != len(logps):
        raise SamplerError(
            f"{where}: {len(tokens)} tokens with {len(logps)} log-probabilities. {_gave(answer)}"
        )
    if len(tokens) > max_tokens:
        raise SamplerError(f"{where}: {len(tokens)} tokens came where max_tokens was {max_tokens}.")
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        raise SamplerError(
            f"{where}: token ids from 0 to {vocabulary - 1} were expected, those of the policy: does the server have "
            f"another base? Start it with the recipe's model.path. {_gave(choice)}"
        )
    if not all(LOWEST <= logp <= ROUNDING for logp in logps):
        raise SamplerError(f"{where}: log-probabilities of at most 0 were expected. {_gave(choice)}")
    reason = str(choice.get("finish_reason"))
    if reason not in ("stop", "length"):
        raise SamplerError(
            f"{where}: a row ended with finish_reason {reason[:40]!r}; stop or length was expected."
        )
    return tokens, [float(logp) for logp in logps], reason


def _all(items: Any, *kinds: type) -> bool:
    """Whether it is a list of numbers of these kinds; True and False are none."""
    return isinstance(items, list) and all(type(item) in kinds for item in items)


def _gave(answer: Any) -> str:
    return f"It gave {str(answer)[:SHOWN]}"


def finish(tokens: list[int], reason: str, eos_ids: Collection[int]) -> Finish:
    """How a row ended.

    Args:
        tokens: of the completion.
        reason: the server's, stop or length.
        eos_ids: tokens that end a completion.
    """
    if tokens[-1] in eos_ids:
        return "eos"
    return "stop" if reason == "stop" else "length"
