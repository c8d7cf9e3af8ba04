"""Which samplers an algorithm can learn from."""

from __future__ import annotations

from ...errors import UsageError
from ...hookspecs import Algorithm, Sampler
from ...recipe.schema import RlStage


def check_sampler(stage: RlStage, algorithm: Algorithm, sampler: Sampler) -> None:
    """The sampler must draw from the policy's own distribution where the algorithm takes ratios.

    Raises:
        UsageError: it does not, or it draws nothing.
    """
    key = f"stages.{stage.name}.sampler"
    params, name = sampler.params, stage.algorithm.name
    if params.temperature <= 0:
        raise UsageError(
            f"{key}.temperature: 0 draws nothing, so there is no distribution to learn from. Use 1.0."
        )
    if "on_policy" not in algorithm.needs or "on_policy" in sampler.provides:
        return
    if params.truncated:
        raise UsageError(
            f"{key}: top_p, top_k and min_p cut off a part of the distribution, and {name} needs draws from all "
            "of it. Leave them out, or use an algorithm without ratios: online_dpo, rejection_sampling."
        )
    raise UsageError(
        f"{key}.name: {stage.sampler.name} does not draw from the policy's own distribution, which {name} "
        "needs. Use cached, or an algorithm without ratios: online_dpo, rejection_sampling."
    )
