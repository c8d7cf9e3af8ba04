"""RL algorithms, each in its own file. They use the same maths and base classes as plugins."""

from __future__ import annotations

from rlhf_peft.plugin import Register, hookimpl

from .cispo import Cispo
from .grpo import Grpo
from .gspo import Gspo
from .online_dpo import OnlineDpo
from .ppo import Ppo
from .reinforce_plus_plus import ReinforcePlusPlus
from .rejection_sampling import RejectionSampling
from .remax import Remax
from .rloo import Rloo


@hookimpl
def rlhf_peft_register_algorithms(register: Register) -> None:
    """Register the built-in algorithms."""
    register("ppo", Ppo)
    register("grpo", Grpo)
    register("gspo", Gspo)
    register("cispo", Cispo)
    register("rloo", Rloo)
    register("reinforce_plus_plus", ReinforcePlusPlus)
    register("remax", Remax)
    register("online_dpo", OnlineDpo)
    register("rejection_sampling", RejectionSampling)
