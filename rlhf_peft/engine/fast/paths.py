"""Which fast paths a model may take: allowed by the recipe, and found equal to the plain path once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import torch
from torch import Tensor

log = logging.getLogger("rlhf_peft")

NAMES = {
    "fused_lora": "a linear layer with its LoRA adapter as one step, forward and backward",
    "gated_mlp": "a gated MLP with its LoRA adapters as one step, forward and backward",
    "fused_norm": "a root mean square norm as one kernel on a card, forward and backward",
    "shared_prefix": "a prompt of several rows is read once in scoring and in the update",
    "fused_logprobs": "on a card, log-probabilities from a chunk of logits by one Triton kernel",
    "dense_weights": "decoding with dense weights into which the adapter is merged",
    "lean_decoder": "a decoding step of Llama-shaped models by the fewest operations",
    "cuda_graphs": "on a card, steps of the lean decoder as captured CUDA graphs",
}
"""The fast paths, and what each one does."""

TOLERANCE = {torch.float32: 1e-4}
"""Largest difference from the plain path, as a share of the largest number, for each dtype."""
HALF_TOLERANCE = 2e-2
"""The same for dtypes of half precision."""
LOGP_TOLERANCE = 0.05
"""Largest mean difference of log-probabilities in half precision, in nats a token. Two ways of computing the same model
in bfloat16 differ by about 0.01 (the error of each against float64 is 0.005 to 0.007)."""

CANNOT = (TypeError, ValueError, AttributeError, RuntimeError, LookupError, NotImplementedError)
"""What a model raises that has another idea of a cache or of its layers than the fast path."""


def tolerance(dtype: torch.dtype) -> float:
    """The largest difference that is taken for rounding, as a share of the largest number of the plain result."""
    return TOLERANCE.get(dtype, HALF_TOLERANCE)


class FastPaths:
    """The fast paths of one model.

    Args:
        allowed: True for all of them, False for none, or the names of those that are allowed.

    Raises:
        ValueError: a name is not in `NAMES`.
    """

    def __init__(self, allowed: bool | Collection[str] = True) -> None:
        names = set(NAMES) if allowed is True else set(allowed or ())
        if unknown := sorted(names - set(NAMES)):
            raise ValueError(f"{unknown[0]!r} is not a fast path; there are {', '.join(NAMES)}")
        self._allowed = frozenset(names)
        self._verified: dict[tuple[str, object], bool] = {}

    def allows(self, name: str) -> bool:
        """Whether the recipe allows a fast path."""
        return name in self._allowed

    def verified_once(
        self,
        name: str,
        fast: Callable[[], Tensor],
        plain: Callable[[], Tensor],
        *,
        of: object = None,
        logits: bool = False,
        dtype: torch.dtype | None = None,
        warns: bool = False,
    ) -> bool:
        """Whether a fast path may be used; compares it with the plain one when it is asked for the first time.

        Args:
            name: of the path, from `NAMES`.
            fast: computes a result the fast way; called only for the comparison.
            plain: computes the same result the plain way.
            of: the module that computes it, or what it computes with in words, where these are compared one by one.
            logits: the result is logits [B, V]: in half precision their log-probabilities are compared.
            dtype: that both compute in, if the result's is another; None: the result's.
            warns: where the comparison fails the path is given up as a whole, with a warning; see `give_up`.

        Returns:
            False where the recipe forbids the path, or where the comparison, now or before, has failed.
        """
        if not self.allows(name):
            return False
        key = (name, of)
        if key not in self._verified:
            reason = _difference(fast, plain, logits, dtype)
            self._verified[key] = reason is None
            if reason is not None and warns:
                self.give_up(name, reason)
            elif reason is not None:
                kind = of if isinstance(of, str) else f"a {type(of).__name__}"
                module = "this model" if of is None else kind
                log.info("model.fast: %s is not used for %s: %s.", name, module, reason)
        return self._verified[key]

    def give_up(self, name: str, reason: str) -> None:
        """Use a path no more, and say so once.

        Args:
            name: of the path, from `NAMES`.
            reason: why, as the end of a sentence.
        """
        if name in self._allowed:
            self._allowed -= {name}
            log.warning("model.fast: %s is not used any more: %s. The plain way goes on.", name, reason)


def logps_differ(result: Tensor, expected: Tensor) -> str | None:
    """How far two sets of logits [B, V] are apart, if they are not the same distribution up to half precision.

    Compared is the mean over rows of sum_v p_v |log p_v - log q_v|, with p from `expected`, in nats a token. A bound
    relative to the largest logit would be too loose: 2 % of a logit of 30 are 0.6 nats.
    """
    mine, theirs = (torch.log_softmax(x.float(), dim=-1) for x in (result, expected))
    difference = float((theirs.exp() * (theirs - mine).abs()).sum(-1).mean())
    if difference <= LOGP_TOLERANCE:  # NaN is not.
        return None
    return f"its log-probabilities differ by {difference:.2g} nats a token"


def _difference(
    fast: Callable[[], Tensor], plain: Callable[[], Tensor], logits: bool, dtype: torch.dtype | None
) -> str | None:
    """Why the two results are not the same; None where they are, up to rounding."""
    with torch.no_grad():
        expected = plain()
        try:
            result = fast()
        except torch.OutOfMemoryError:
            raise
        except CANNOT as error:
            return f"it raised {type(error).__name__}"
    if result.shape != expected.shape:
        return f"its result has the shape {tuple(result.shape)} instead of {tuple(expected.shape)}"
    dtype = dtype or expected.dtype
    if logits and dtype != torch.float32:
        return logps_differ(result, expected)
    largest = float(expected.float().abs().max())
    if torch.allclose(result.float(), expected.float(), atol=tolerance(dtype) * largest):
        return None
    return f"its result differs by up to {float((result.float() - expected.float()).abs().max()):.2g}"
