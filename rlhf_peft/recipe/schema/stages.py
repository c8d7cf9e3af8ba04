"""The stages of a recipe; each has only the keys that it reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .fields import (
    Count,
    Members,
    NotNegative,
    Number,
    Positive,
    Rate,
    Share,
    Steps,
    WarmUp,
    check_stage_name,
    number,
)
from .sections import (
    Checkpoint,
    Collapse,
    DatasetSource,
    Eval,
    Lora,
    OpenSection,
    PolicyEval,
    RewardEntry,
    RlEval,
    Section,
)


class StageBase(Section):
    """The keys that all stages share."""

    name: Annotated[str, AfterValidator(check_stage_name)] = Field(
        "", description="Name of the stage in the run folder; default: its kind."
    )
    dataset: DatasetSource = Field(description="The rows to train on.")
    learning_rate: Rate = Field(1e-4, description="Peak learning rate.")
    num_train_epochs: Positive = Field(1.0, description="Passes over the dataset.")
    max_steps: Steps | None = Field(None, description="Updates; overrides num_train_epochs.")
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Shape after the warmup."
    )
    warmup: WarmUp = Field(
        0.03, description="Warmup. Below 1 it is a fraction of the steps, otherwise a number of steps."
    )
    max_grad_norm: NotNegative = Field(
        1.0, description="Gradient clipping by global norm; 0 is off (still logged)."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw",
        description="Optimizer. On a GPU `adamw` is one fused kernel; the 8-bit ones of bitsandbytes save memory, and "
        "wait for the GPU after every parameter.",
    )
    weight_decay: NotNegative = Field(0.0, description="Decoupled weight decay.")
    adam_beta1: Share = Field(0.9, description="AdamW's decay of the mean of gradients.")
    adam_beta2: Share = Field(0.999, description="AdamW's decay of the mean of squared gradients.")
    adam_epsilon: Positive = Field(
        1e-8,
        description="Added to the root of that mean in AdamW's denominator. Gradients well below it move their weights "
        "less; PPO on all of a model's weights is often run with 1e-5.",
    )
    eval: Eval = Field(default_factory=lambda: Eval(), description="Evaluation while the stage trains.")
    max_bad_steps: Annotated[int, Field(ge=0, le=10**8), BeforeValidator(number)] = Field(
        3,
        description="Updates in a row that may be skipped because their loss or gradient is not finite; one more stops "
        "the run (exit 3).",
    )
    checkpoint: Checkpoint = Field(
        default_factory=lambda: Checkpoint(),
        description="Points from which the stage can continue after an interruption.",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("stage"), str):
            return {**data, "name": data["stage"]}
        return data


class RowStage(StageBase):
    """A stage whose updates see rows of its dataset."""

    batch_size: Count = Field(16, description="Rows (pairs) that one update sees.")


class TrlStage(RowStage):
    """A stage whose training of the policy is done by TRL."""

    eval: PolicyEval = Field(
        default_factory=lambda: PolicyEval(), description="Evaluation while the stage trains."
    )
    init: dict[Literal["policy"], str] = Field(
        default_factory=dict, description="Role to earlier run, folder or hub id that it starts from."
    )


class SftStage(TrlStage):
    """Supervised fine-tuning of the policy (TRL's SFTTrainer)."""

    stage: Literal["sft"]
    learning_rate: Rate = Field(2e-4, description="Peak learning rate.")
    packing: bool = Field(False, description="Pack several rows into one sequence.")
    completion_only_loss: bool | None = Field(
        None,
        description="Train on completions only; null: yes for prompt-completion data, no for plain text.",
    )
    assistant_only_loss: bool = Field(
        False, description="Train on assistant turns only (the template must mark them)."
    )


class PreferenceStage(TrlStage):
    """Training of the policy on preferences, without a reward model (TRL's DPOTrainer and KTOTrainer)."""

    stage: Literal["preference"]
    learning_rate: Rate = Field(1e-5, description="Peak learning rate.")
    method: Literal["dpo", "kto"] = Field("dpo", description="DPO needs pairs; KTO needs rows with a label.")
    beta: Positive = Field(0.1, description="Strength of the pull to the reference.")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5), BeforeValidator(number)] = Field(
        0.0, description="DPO: probability that a label is wrong."
    )
    desirable_weight: Positive = Field(1.0, description="KTO: weight of desirable rows.")
    undesirable_weight: Positive = Field(1.0, description="KTO: weight of undesirable rows.")

    @model_validator(mode="after")
    def _of_the_method(self) -> PreferenceStage:
        others = {"dpo": ("desirable_weight", "undesirable_weight"), "kto": ("label_smoothing",)}[self.method]
        for name in others:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is not used by method: {self.method}. Leave it out")
        return self


class RewardModelStage(RowStage):
    """Training of reward adapters and heads with the Bradley-Terry loss."""

    stage: Literal["reward_model"]
    init: dict[Literal["reward"], str] = Field(
        default_factory=dict, description="Role to earlier run, folder or hub id that it starts from."
    )
    lora: Lora | None = Field(
        None,
        description="Overrides the recipe's for the reward adapters, which then begin at zero; null: they begin as a "
        "copy of the policy's adapter if an earlier stage has trained it.",
    )
    ensemble: Members = Field(1, description="Reward adapters and heads trained, each on its own data order.")
    center_rewards_coefficient: NotNegative = Field(
        0.0, description="Adds c * (r_chosen + r_rejected)^2 (Eisenstein et al., 2023)."
    )
    normalize: Literal["shift", "standardize", "none"] = Field(
        "shift",
        description="After training: shift so that chosen rows have mean 0; standardize: unit variance too. With "
        "init.reward: the mean and variance that the earlier head gave to the same rows, so that scores of several "
        "rounds can be compared. The head's bias is not trained, as in TRL.",
    )

    @model_validator(mode="after")
    def _one_beginning(self) -> RewardModelStage:
        if self.lora is not None and "reward" in self.init:
            raise ValueError(
                "lora: with init.reward the adapters have the shape of the earlier ones. Leave one out"
            )
        return self


class RlStage(StageBase):
    """Reinforcement learning of the policy."""

    stage: Literal["rl"]
    learning_rate: Rate = Field(1e-5, description="Peak learning rate of the policy.")
    value_learning_rate: Rate | None = Field(
        None, description="Learning rate of the value role; null: the policy's."
    )
    eval: RlEval = Field(default_factory=lambda: RlEval(), description="Evaluation while the stage trains.")
    init: dict[Literal["policy", "reward", "value"], str] = Field(
        default_factory=dict, description="Role to earlier run, folder or hub id that it starts from."
    )
    warmup: WarmUp = Field(
        0.0, description="Warmup. Below 1 it is a fraction of the steps, otherwise a number of steps."
    )
    checkpoint: Checkpoint = Field(
        default_factory=lambda: Checkpoint(every=10),
        description="Points from which the stage can continue after an interruption.",
    )
    algorithm: OpenSection = Field(description="RL algorithm and its options.")
    sampler: OpenSection = Field(description="Sampler and its options.")
    rewards: list[RewardEntry] = Field(min_length=1, description="Rewards; their weighted sum is maximised.")
    prompts_per_step: Count = Field(64, description="Prompts in one rollout.")
    missing_eos_penalty: NotNegative | None = Field(
        None, description="Subtracted from the score of a completion that did not end."
    )
    missing_eos_score: Number | None = Field(
        None, description="Replaces the score of a completion that did not end (as in Ziegler et al.: -1)."
    )
    importance_cap: Positive | None = Field(
        2.0,
        description="Cap of the weight between trainer and sampler (truncated importance); null: none.",
    )
    kl_limit: Positive | None = Field(
        None, description="Stop (exit 3) when the mean KL of completions, in nats, goes above it."
    )
    collapse: Collapse = Field(
        default_factory=lambda: Collapse(),
        description="What to do if the policy collapses (repeats itself, falls silent, gets no signal): warn or stop.",
    )

    @model_validator(mode="after")
    def _one_eos_rule(self) -> RlStage:
        if self.missing_eos_penalty is not None and self.missing_eos_score is not None:
            raise ValueError("give missing_eos_penalty or missing_eos_score, not both")
        return self


PolicyStage = TrlStage | RlStage
"""The stages that train the policy."""

Stage = Annotated[SftStage | PreferenceStage | RewardModelStage | RlStage, Field(discriminator="stage")]
