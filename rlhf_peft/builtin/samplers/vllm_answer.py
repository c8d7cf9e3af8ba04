"""Reads and checks the answer of a vLLM server's `/v1/completions`; no field of it is trusted."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rlhf_peft.plugin import Finish, SamplerError

ROUNDING = 1e-3
"""How far above 0 a log-probability may be, in nats."""
LOWEST = -1e6
"""Lowest plausible log-probability of a drawn token, in nats."""
SHOWN = 200
"""Most characters of an answer that a message shows."""


def read_completion(
    where: str, answer: Any, max_tokens: int, vocabulary: int
) -> tuple[list[int], list[float], str]:
    """Read token ids, their log-probabilities, and the finish reason.

    Args:
        where: beginning of every message: the sampler and the URL.
        answer: the answer's JSON.
        max_tokens: most tokens that were requested.
        vocabulary: number of tokens that the policy knows.

    Raises:
        SamplerError: the answer is not the one completion that was requested.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if isinstance(choices, list) and len(choices) != 1:
        raise SamplerError(f"{where}: one choice was asked for, and {len(choices)} came. {_quoted(answer)}")
    try:
        choice = choices[0] if isinstance(choices, list) else {}
        tokens, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    except (KeyError, TypeError):
        tokens = logps = None
    if not _is_list_of(tokens, int) or not _is_list_of(logps, int, float):
        raise SamplerError(
            f"{where}: the answer has no token_ids with logprobs. vLLM 0.10.2 or later was expected. {_quoted(answer)}"
        )
    if not tokens or len(tokens) != len(logps):
        raise SamplerError(
            f"{where}: {len(tokens)} tokens with {len(logps)} log-probabilities. {_quoted(answer)}"
        )
    if len(tokens) > max_tokens:
        raise SamplerError(f"{where}: {len(tokens)} tokens came where max_tokens was {max_tokens}.")
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        raise SamplerError(
            f"{where}: token ids from 0 to {vocabulary - 1} were expected, those of the policy: does the server have "
            f"another base? Start it with the recipe's model.path. {_quoted(choice)}"
        )
    if not all(LOWEST <= logp <= ROUNDING for logp in logps):
        raise SamplerError(f"{where}: log-probabilities of at most 0 were expected. {_quoted(choice)}")
    reason = str(choice.get("finish_reason"))
    if reason not in ("stop", "length"):
        raise SamplerError(
            f"{where}: a row ended with finish_reason {reason[:40]!r}; stop or length was expected."
        )
    return tokens, [float(logp) for logp in logps], reason


def _is_list_of(items: Any, *kinds: type) -> bool:
    """Whether a value is a list of numbers of these types; True and False are no numbers."""
    return isinstance(items, list) and all(type(item) in kinds for item in items)


def _quoted(answer: Any) -> str:
    """The beginning of an answer, for a message."""
    return f"It gave {str(answer)[:SHOWN]}"


def finish(tokens: list[int], reason: str, eos_ids: Collection[int]) -> Finish:
    """How a completion ended.

    Args:
        tokens: tokens of the completion.
        reason: the server's finish reason, stop or length.
        eos_ids: tokens that end a completion.
    """
    if tokens[-1] in eos_ids:
        return "eos"
    return "stop" if reason == "stop" else "length"
