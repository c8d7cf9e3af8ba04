"""The recipe: every key, its type, its default and what it is for.

Open sections (`quantization`, `algorithm`, `sampler`, each of `rewards`, a registered dataset) hold a `name` and that
plugin's own options; the registry validates those. A recipe names registered things: no key imports code.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<!\.)")
WINDOWS_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"com{i}" for i in range(1, 10)),
    *(f"lpt{i}" for i in range(1, 10)),
}


LONGEST_NAME = 100
"""Characters: file systems take names of 255 bytes, and checkpoints add to the names of stages."""


def check_run_name(name: str) -> str:
    """The name itself, or ValueError: it must be safe as a folder name everywhere."""
    if not RUN_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a run: start with a letter or digit, then letters, digits, '.', '_' or "
            "'-', no dot at the end"
        )
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name of {len(name)} characters; at most {LONGEST_NAME} make a folder's name")
    if name.split(".")[0].lower() in WINDOWS_DEVICES:
        raise ValueError(f"{name!r} cannot name a run: it is a device name on Windows")
    return name


def check_stage_name(name: str) -> str:
    """The name itself, or ValueError: it is a part of file names."""
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a name of {len(name)} characters; at most {LONGEST_NAME} are a part of file names")
    if name and not RUN_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a stage: start with a letter or digit, then letters, digits, '.', '_' or '-', no "
            "dot at the end"
        )
    return name


def _number(value: Any) -> Any:
    """YAML reads `1e-6` as text: take it as the number it means. `true` is no number."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "Input should be a valid number")
    if isinstance(value, str):
        for read in (int, float):
            try:
                return read(value)
            except ValueError:
                continue
    return value


RunName = Annotated[str, AfterValidator(check_run_name)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_number)]
Count = Annotated[int, Field(gt=0, le=2**20), BeforeValidator(_number)]
"""Of rows, checkpoints and the like. This bound and the following ones stop slips of the keyboard, and no real run."""
Steps = Annotated[int, Field(gt=0, le=10**8), BeforeValidator(_number)]
Tokens = Annotated[int, Field(gt=0, le=2**24), BeforeValidator(_number)]
Rank = Annotated[int, Field(gt=0, le=2**14), BeforeValidator(_number)]
Members = Annotated[int, Field(gt=0, le=64), BeforeValidator(_number)]
Number = Annotated[float, Field(ge=-1e6, le=1e6), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0, le=1e6), BeforeValidator(_number)]
NotNegative = Annotated[float, Field(ge=0, le=1e6), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
Rate = Annotated[float, Field(gt=0, le=100), BeforeValidator(_number)]
Seconds = Annotated[float, Field(gt=0, le=1e7), BeforeValidator(_number)]
WarmUp = Annotated[float, Field(ge=0, le=1e8), BeforeValidator(_number)]


RENDERING = frozenset(
    [
        "conversation",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "kwargs",
        "self",
    ]
)
"""Arguments of a tokenizer's `apply_chat_template` that are not the template's own."""
JINJA = frozenset({"true", "false", "none", "loop", "caller", "varargs", "super", "context"})


def check_template_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments themselves, or ValueError: their names become names in a template, their values literals."""
    for name, value in given.items():
        if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name in JINJA:
            raise ValueError(
                f"{name!r} cannot be an argument of a chat template: give a name of letters, digits and '_'"
            )
        if name in RENDERING:
            raise ValueError(f"{name!r} is set by rlhf-peft itself. Leave it out")
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(
                f"{name} holds a number that is not finite, which no template can hold"
            ) from None
    return given


TemplateArguments = Annotated[dict[str, Any], AfterValidator(check_template_arguments)]


class Section(BaseModel):
    """A part of the recipe whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class OpenSection(BaseModel):
    """A registered thing by name, with that thing's own options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    name: str = Field(description="Registered name, or `distribution:name`.")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the plugin."""
        return dict(self.model_extra or {})


DEFAULT_QUANTIZER = "nf4"


class Quantization(OpenSection):
    """A registered quantizer: its name alone, or `name` with its own options beside it."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, (Mapping, Quantization)):
            raise PydanticCustomError(
                "quantization", "Input should be the name of a quantizer or keys with values"
            )
        return given

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        """The name alone where there are no options."""
        written = handler(self)
        return written if self.model_extra else written["name"]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        section = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "string"}, {**section, "type": "object"}]}


class Model(Section):
    """The one base model that all roles share."""

    path: str = Field(description="Hub id, folder, or `builtin:tiny`.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    quantization: Quantization = Field(
        default_factory=lambda: Quantization(name=DEFAULT_QUANTIZER),
        description="How the base's weights are held: `nf4`, `fp4`, `int8`, `none` or a plugin's quantizer; its name, "
        "or a section with `name` and its options.",
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the forwards; auto: bfloat16 on a GPU that has it, else float32."
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = Field(
        "auto", description="Attention kernel, as transformers names it."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    merge_rollouts: bool | None = Field(
        None,
        description="Write completions with dense weights, the adapter merged in, instead of the quantized ones: "
        "several times faster, more memory; null: where they fit.",
    )
    max_length: Tokens | None = Field(
        None, description="Longest row, prompt and completion, in tokens; null: what the model allows."
    )
    tokens_per_forward: Tokens = Field(
        16384, description="Most tokens, padding included, in one forward; micro-batches follow from it."
    )
    chat_template_kwargs: TemplateArguments = Field(
        default_factory=dict, description="Passed to the chat template, such as `enable_thinking: false`."
    )


class Lora(Section):
    """The adapters (PEFT's names without the `lora_` prefix)."""

    r: Rank = Field(16, description="Rank.")
    alpha: Positive = Field(32.0, description="Scale: the update is multiplied by alpha / r.")
    dropout: Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)] = Field(
        0.0, description="Dropout before the adapter; always off while RL compares log-probabilities."
    )
    target_modules: str | list[str] = Field(
        "all-linear",
        description="Which layers carry an adapter: `all-linear` (each linear layer that can), names, or a regular "
        "expression.",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead.")


class DatasetSource(BaseModel):
    """Where rows come from: `path` for files and the hub, or only `name` for a registered dataset."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    path: str | None = Field(None, description="Hub id, folder, or jsonl, json, csv, parquet file.")
    name: str | None = Field(
        None, description="With `path`: the hub's configuration name. Without: a registered dataset."
    )
    split: str = Field("train", description="Split, slices too: `train[:90%]`.")
    columns: dict[str, str | list[str]] = Field(
        default_factory=dict,
        description="Renaming: our column to the file's column, or to a list of columns whose texts are joined by an "
        "empty line, as in Alpaca's `prompt: [instruction, input]`.",
    )
    system: str | None = Field(None, description="System message put before conversational prompts.")
    eval_fraction: Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)] = Field(
        0.0, description="Part of the rows held out for evaluation."
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="What to do with a row that is empty, too long or of the wrong type."
    )
    on_long_row: Literal["error", "skip", "cut"] | None = Field(
        None,
        description="What to do with a row of more tokens than `model.max_length`; `cut` cuts the end of its answer. "
        "null: as `on_bad_row`.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to a registered dataset."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSource:
        if self.path is None and self.name is None:
            raise ValueError("give `path` (hub id, folder or file) or the `name` of a registered dataset")
        if self.path is not None and self.model_extra:
            keys = ", ".join(sorted(self.model_extra))
            raise PydanticCustomError("dataset_extra", "unknown key {keys}", {"keys": keys})
        return self


class RewardEntry(OpenSection):
    """One reward of an RL stage."""

    weight: Number = Field(1.0, description="Factor in the sum of all rewards.")
    clip: tuple[Number, Number] | None = Field(
        None, description="Lowest and highest score, before normalisation; null: as it is."
    )
    normalize: Literal["none", "group", "batch", "running"] = Field(
        "none",
        description="Shift to mean 0 and scale to variance 1 over a prompt's group, the batch, or all rows so far.",
    )
    on_error: Literal["stop", "abstain"] = Field(
        "stop",
        description="What a reward that raises, takes too long or gives no number does: stop the run, or not count.",
    )
    timeout: Seconds | None = Field(
        None, description="Seconds for one batch; null: as the reward has it, else no limit."
    )
    in_process: bool = Field(
        False,
        description="Call it in the run's own process, where a timeout cannot stop it. The current folder and torch's "
        "settings are put back after each call, and os._exit is an error.",
    )


class Eval(Section):
    """Evaluation while a stage trains."""

    every: Steps | None = Field(None, description="Updates between evaluations; null: only before and after.")
    split: str | None = Field(None, description="Held-out split, slices too: `test[:200]`.")
    prompts: str | None = Field(
        None, description="Text file with one prompt a line, answered at each evaluation."
    )
    dataset: DatasetSource | None = Field(None, description="Held-out rows from elsewhere.")
    size: Count = Field(256, description="Most rows used.")
    rewards: list[RewardEntry] = Field(
        default_factory=list, description="Further rewards that are only measured, never trained on."
    )

    def due(self, step: int) -> bool:
        """Whether `every` asks for an evaluation after this update."""
        return self.every is not None and step % self.every == 0


class Checkpoint(Section):
    """Where a stage can go on after an interruption; its end is always one."""

    every: Steps | None = Field(50, description="Updates between checkpoints; null: none on the way.")
    keep: Count = Field(2, description="Newest checkpoints of a stage that are kept while it trains.")
    keep_best: str | None = Field(
        None, description="Figure whose highest checkpoint is kept too, such as `eval/reward`."
    )


class Collapse(Section):
    """When a policy counts as collapsed, and what happens then."""

    action: Literal["warn", "stop"] = Field(
        "warn", description="Warn, once each time that it begins, or stop the run (exit 3)."
    )
    steps: Steps = Field(
        10,
        description="So many steps in a row must look collapsed; steps in which all scores (of each prompt) are equal, "
        "and steps in which no completion ends, count too.",
    )
    entropy: Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)] = Field(
        0.1, description="Collapsed: entropy below this share of the first step's; 0: never."
    )
    length: Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)] = Field(
        0.1,
        description="Collapsed: mean length of completions below this share of the first step's; 0: never.",
    )


class StageBase(Section):
    """What every stage shares."""

    name: Annotated[str, AfterValidator(check_stage_name)] = Field(
        "", description="Name of the stage in the run folder; default: its kind."
    )
    dataset: DatasetSource = Field(description="The rows to train on.")
    learning_rate: Rate = Field(1e-4, description="Peak learning rate.")
    batch_size: Count = Field(16, description="Rows (pairs) that one update sees.")
    num_train_epochs: Positive = Field(1.0, description="Passes over the dataset.")
    max_steps: Steps | None = Field(None, description="Updates; overrides num_train_epochs.")
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Shape after the warmup."
    )
    warmup: WarmUp = Field(
        0.03, description="Warmup: a fraction of the steps below 1, else a number of steps."
    )
    max_grad_norm: NotNegative = Field(
        1.0, description="Gradient clipping by global norm; 0 is off (still logged)."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field("adamw", description="Optimizer.")
    weight_decay: NotNegative = Field(0.0, description="Decoupled weight decay.")
    adam_beta1: Share = Field(0.9, description="AdamW's decay of the mean of gradients.")
    adam_beta2: Share = Field(0.999, description="AdamW's decay of the mean of squared gradients.")
    adam_epsilon: Positive = Field(
        1e-8,
        description="Added to the root of that mean in AdamW's denominator. Gradients well below it move their weights "
        "less; PPO on all of a model's weights is often run with 1e-5.",
    )
    eval: Eval = Field(default_factory=lambda: Eval(), description="Evaluation while the stage trains.")
    max_bad_steps: Annotated[int, Field(ge=0, le=10**8), BeforeValidator(_number)] = Field(
        3,
        description="Updates in a row that may be skipped because their loss or gradient is not finite; one more stops "
        "the run (exit 3).",
    )
    checkpoint: Checkpoint = Field(
        default_factory=lambda: Checkpoint(), description="Where the stage can go on after an interruption."
    )
    init: dict[Literal["policy", "reward", "value"], str] = Field(
        default_factory=dict, description="Role to earlier run, folder or hub id that it starts from."
    )
    lora: Lora | None = Field(None, description="Overrides the recipe's for the adapters this stage makes.")

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("stage"), str):
            return {**data, "name": data["stage"]}
        return data


class SftStage(StageBase):
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


class PreferenceStage(StageBase):
    """Preferences straight into the policy (TRL's DPOTrainer and KTOTrainer)."""

    stage: Literal["preference"]
    learning_rate: Rate = Field(1e-5, description="Peak learning rate.")
    method: Literal["dpo", "kto"] = Field("dpo", description="DPO needs pairs; KTO needs rows with a label.")
    beta: Positive = Field(0.1, description="Strength of the pull to the reference.")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5), BeforeValidator(_number)] = Field(
        0.0, description="DPO: probability that a label is wrong."
    )
    desirable_weight: Positive = Field(1.0, description="KTO: weight of desirable rows.")
    undesirable_weight: Positive = Field(1.0, description="KTO: weight of undesirable rows.")


class RewardModelStage(StageBase):
    """Bradley-Terry on reward adapters and heads."""

    stage: Literal["reward_model"]
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
    def _writes_nothing(self) -> RewardModelStage:
        if self.eval.prompts is not None:
            raise ValueError(
                "eval.prompts: a reward model answers no prompts; give it to a stage that trains the policy"
            )
        return self


class RlStage(StageBase):
    """Reinforcement learning of the policy."""

    stage: Literal["rl"]
    learning_rate: Rate = Field(1e-5, description="Peak learning rate of the policy.")
    value_learning_rate: Rate | None = Field(None, description="Of the value role; null: the policy's.")
    warmup: WarmUp = Field(
        0.0, description="Warmup: a fraction of the steps below 1, else a number of steps."
    )
    checkpoint: Checkpoint = Field(
        default_factory=lambda: Checkpoint(every=10),
        description="Where the stage can go on after an interruption.",
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
        description="What a policy that repeats itself, falls silent or is told nothing does: warn or stop.",
    )

    @model_validator(mode="after")
    def _one_eos_rule(self) -> RlStage:
        if self.missing_eos_penalty is not None and self.missing_eos_score is not None:
            raise ValueError("give missing_eos_penalty or missing_eos_score, not both")
        return self


Stage = Annotated[SftStage | PreferenceStage | RewardModelStage | RlStage, Field(discriminator="stage")]


class Recipe(Section):
    """A whole run."""

    version: Literal[1] = Field(description="Of the recipe format.")
    name: RunName = Field(description="Of the run: its folder under output_dir.")
    seed: Seed = Field(
        17, description="Seeds data order, sampling and initialisation, each a stream of its own."
    )
    output_dir: str = Field("runs", description="Where run folders go.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N, xpu, mps.")
    tracking: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        default_factory=list,
        description="Where figures go too: tensorboard, wandb, trackio, mlflow, each installed by you.",
    )
    plugins: list[str] = Field(default_factory=list, description="Distributions that the recipe requires.")
    model: Model = Field(description="The base model.")
    lora: Lora = Field(default_factory=lambda: Lora(), description="Adapters of all roles.")
    stages: list[Stage] = Field(
        min_length=1, description="Done in order; each begins where the one before ended."
    )

    @model_validator(mode="after")
    def _inherit_lora(self) -> Recipe:
        for index, stage in enumerate(self.stages):
            if stage.lora is not None:
                own = {key: getattr(stage.lora, key) for key in stage.lora.model_fields_set}
                lora = Lora(**{**self.lora.model_dump(), **own})
                self.stages[index] = stage.model_copy(update={"lora": lora})
        return self

    @model_validator(mode="after")
    def _unique_stage_names(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        for name in names:
            check_run_name(name)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two stages are called {', '.join(twice)}: give each its own `name`")
        return self

    @property
    def run_folder(self) -> Path:
        """`<output_dir>/<name>`."""
        return Path(self.output_dir) / self.name


RESERVED: dict[str, frozenset[str]] = {
    "algorithms": frozenset(OpenSection.model_fields),
    "samplers": frozenset(OpenSection.model_fields),
    "rewards": frozenset(RewardEntry.model_fields),
    "datasets": frozenset(DatasetSource.model_fields),
    "quantizers": frozenset(Quantization.model_fields),
}
"""Kind to the keys that the recipe itself has in a plugin's section; options so named would be hidden."""
