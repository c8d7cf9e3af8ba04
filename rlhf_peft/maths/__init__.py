"""Pure functions on tensors: log-probabilities, KL, advantages, losses and masked statistics.

Letters: B batch, T tokens, G group, V vocabulary, H hidden, N rows.

Index t is the position of a token in its row. `logps[b, t]` is log pi(token t | tokens before t), `values[b,
t]` the value of the state before token t is taken, `rewards[b, t]` what is received on taking it. Rows are
padded to [B, T] with a boolean `mask` that is True at the tokens the policy wrote; it may have several spans
a row. Whatever stands outside the mask, NaN included, has no influence on a result.

Left out on purpose: configuration, logging, models, and anything but torch.
"""

from .advantages import (
    discounted_returns,
    gae,
    group_advantages,
    leave_one_out,
    overlong_penalty,
    token_rewards,
    varies,
)
from .kl import adaptive_beta, check_kl_placement, kl_estimate, kl_exact
from .logprobs import token_logprobs
from .losses import (
    bradley_terry,
    cispo_terms,
    dpo_terms,
    ppo_policy_terms,
    sequence_log_ratio,
    token_weights,
    truncated_importance,
    value_terms,
)
from .masked import (
    explained_variance,
    full_precision,
    last_index,
    masked_mean,
    masked_sum,
    masked_var,
    weighted_sum,
    whiten,
)
from .stats import bootstrap_interval, distinct_n, expected_calibration_error, reliability

__all__ = [
    "adaptive_beta",
    "bootstrap_interval",
    "bradley_terry",
    "check_kl_placement",
    "cispo_terms",
    "discounted_returns",
    "distinct_n",
    "dpo_terms",
    "expected_calibration_error",
    "explained_variance",
    "full_precision",
    "gae",
    "group_advantages",
    "kl_estimate",
    "kl_exact",
    "last_index",
    "leave_one_out",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "overlong_penalty",
    "ppo_policy_terms",
    "reliability",
    "sequence_log_ratio",
    "token_logprobs",
    "token_rewards",
    "token_weights",
    "truncated_importance",
    "value_terms",
    "varies",
    "weighted_sum",
    "whiten",
]
