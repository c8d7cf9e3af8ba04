"""The metrics of metrics.jsonl that a report shows for each kind of stage, with advice on reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PHASES = ("rollout", "scoring", "update")


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot of metrics over the steps of a stage.

    Attributes:
        title: title above the plot.
        metrics: names in metrics.jsonl and their labels; a name with `*` stands for all names that match it.
        note: explanation below the plot.
        share: whether the values are between 0 and 1.
        min_curves: number of curves from which on the plot is shown.
    """

    title: str
    metrics: Mapping[str, str]
    note: str
    share: bool = False
    min_curves: int = 1


CHARTS: dict[str, tuple[Chart, ...]] = {
    "sft": (
        Chart(
            "Loss",
            {"loss": "training", "eval_loss": "held out"},
            "Nats per token. A held-out loss that rises means overfitting: too many epochs.",
        ),
        Chart(
            "Token accuracy",
            {"mean_token_accuracy": "training", "eval_mean_token_accuracy": "held out"},
            "Share of tokens that the policy finds the most likely ones.",
            share=True,
        ),
    ),
    "preference": (
        Chart(
            "Loss",
            {"loss": "training", "eval_loss": "held out"},
            "DPO starts at 0.693 (log 2), where the policy equals the reference.",
        ),
        Chart(
            "Accuracy",
            {"rewards/accuracies": "training", "eval_rewards/accuracies": "held out"},
            "Share of pairs that the implicit reward ranks correctly.",
            share=True,
        ),
        Chart(
            "Margin",
            {"rewards/margins": "training", "eval_rewards/margins": "held out"},
            "Implicit reward of chosen answers minus that of rejected ones.",
        ),
    ),
    "reward_model": (
        Chart(
            "Loss",
            {"loss": "training", "eval/*loss": "held out"},
            "Bradley-Terry loss; 0.693 (log 2) is chance. The heads of an ensemble are trained one after the other.",
        ),
        Chart(
            "Accuracy",
            {"accuracy": "training", "eval/*accuracy": "held out"},
            "Share of pairs ranked correctly. The heads of an ensemble are trained one after the other.",
            share=True,
        ),
    ),
    "rl": (
        Chart(
            "Reward",
            {"reward": "sampled", "eval/reward": "held out"},
            "Weighted sum of all rewards. Look at the answers too.",
        ),
        Chart(
            "Each reward",
            {"rewards/*/mean": ""},
            "Not weighted. A reward that falls while the sum rises is sacrificed for the others.",
            min_curves=2,
        ),
        Chart(
            "Each reward, held out",
            {"eval/rewards/*/mean": ""},
            "On prompts that were never trained on.",
            min_curves=2,
        ),
        Chart(
            "KL to the reference",
            {"kl": "sampled", "eval/kl": "held out"},
            "Nats per completion: the distance of the policy from the reference.",
        ),
        Chart(
            "Length of completions",
            {
                "completions/mean_length": "mean",
                "completions/min_length": "shortest",
                "completions/max_length": "longest",
            },
            "Tokens. If the length rises together with the reward, the reward may measure length only.",
        ),
        Chart(
            "Ended by themselves",
            {"completions/eos_rate": "sampled", "eval/completions/eos_rate": "held out"},
            "Share of completions that ended before max_new_tokens.",
            share=True,
        ),
        Chart(
            "Entropy", {"entropy": ""}, "Nats per token. Near zero, the policy writes almost always the same."
        ),
        Chart(
            "Clip fraction",
            {"clip_ratio/region_mean": "policy", "clip_ratio/value_mean": "value"},
            "Share of tokens whose gradient is zero because of clipping. If it is far above 0.2, take smaller steps.",
        ),
        Chart("Value loss", {"value/loss": ""}, "Mean over tokens."),
        Chart(
            "Explained variance",
            {"value/explained_variance": ""},
            "1: the value predicts the return exactly; 0 or less: it does not help.",
        ),
        Chart("Gradient norm", {"grad_norm": ""}, "Before clipping."),
        Chart("Seconds per step", {f"time/{phase}": phase for phase in PHASES}, "By phase."),
    ),
}
