"""The sections of a recipe: the model, adapters, datasets, rewards, evaluation, checkpoints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from .fields import Count, Number, Positive, Rank, Seconds, Share, Steps, TemplateArguments, Tokens
from .open_section import OpenSection
from .quantization import DEFAULT_QUANTIZER, Quantization


class Section(BaseModel):
    """A part of the recipe whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


FastPath = Literal[
    "fused_lora",
    "gated_mlp",
    "fused_norm",
    "shared_prefix",
    "fused_logprobs",
    "dense_weights",
    "lean_decoder",
    "cuda_graphs",
]
"""Names of the fast paths, as in `engine.fast`."""


class Model(Section):
    """The one base model that all roles share."""

    path: str = Field(description="Hub id, folder, or `builtin:tiny`.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    quantization: Quantization = Field(
        default_factory=lambda: Quantization(name=DEFAULT_QUANTIZER),
        description="How the base's weights are stored: `nf4`, `fp4`, `int8`, `none` or a plugin's quantizer; its "
        "name, or a section with `name` and its options.",
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of the forwards; auto: bfloat16 on a GPU that has it, else float32. `float16` is for "
        "GPUs without bfloat16 (T4, V100, RTX 20): half the memory, loss scaling, but numbers above 65,504 overflow.",
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
        "several times faster on a CPU, more memory; null: where they fit, but on a GPU not for models of Llama's "
        "shape, which decode from the quantized weights.",
    )
    fast: bool | list[FastPath] = Field(
        True,
        description="Faster ways to compute the same, each compared with the plain way first; false: none of them; a "
        "list: only these.",
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

    @model_validator(mode="after")
    def _merging_is_allowed(self) -> Model:
        allowed = self.fast is True or (isinstance(self.fast, list) and "dense_weights" in self.fast)
        if self.merge_rollouts and not allowed:
            raise ValueError("merge_rollouts: true needs dense_weights among `fast`. Leave one of them out")
        return self


class Lora(Section):
    """The adapters (PEFT's names without the `lora_` prefix)."""

    r: Rank = Field(16, description="Rank.")
    alpha: Positive = Field(32.0, description="Scale: the update is multiplied by alpha / r.")
    dropout: Share = Field(
        0.0, description="Dropout before the adapter; always off while RL compares log-probabilities."
    )
    target_modules: str | list[str] = Field(
        "all-linear",
        description="Which layers carry an adapter: `all-linear` (each linear layer that can), names, or a regular "
        "expression.",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead.")


class DatasetSource(BaseModel):
    """The source of rows: `path` for files and the hub, or only `name` for a registered dataset."""

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
    eval_fraction: Share = Field(0.0, description="Part of the rows held out for evaluation.")
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
    dataset: DatasetSource | None = Field(None, description="Held-out rows from elsewhere.")
    size: Count = Field(256, description="Most rows used.")

    def due(self, step: int) -> bool:
        """Whether `every` asks for an evaluation after this update."""
        return self.every is not None and step % self.every == 0


class PolicyEval(Eval):
    """Evaluation of a stage that trains the policy."""

    prompts: str | None = Field(
        None, description="Text file with one prompt a line, answered at each evaluation."
    )


class RlEval(PolicyEval):
    """Evaluation of an RL stage."""

    rewards: list[RewardEntry] = Field(
        default_factory=list, description="Further rewards that are only measured, never trained on."
    )


class Checkpoint(Section):
    """Points from which a stage can continue after an interruption; its end is always one."""

    every: Steps | None = Field(50, description="Updates between checkpoints; null: none on the way.")
    keep: Count = Field(2, description="Newest checkpoints of a stage that are kept while it trains.")
    keep_best: str | None = Field(
        None,
        description="Keep the checkpoint with the highest value of this metric, too; for example `eval/reward`.",
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
    entropy: Share = Field(
        0.1, description="Collapsed: entropy below this share of the first step's; 0: never."
    )
    length: Share = Field(
        0.1,
        description="Collapsed: mean length of completions below this share of the first step's; 0: never.",
    )
