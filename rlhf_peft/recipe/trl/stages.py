"""Makes the sections of a recipe from TRL's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convert import Reader

_OPTIMIZERS = {
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "paged_adamw": "adamw",
    "paged_adamw_32bit": "adamw",
}
_ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flex_attention")
_LOSSES = {"sft": "nll", "dpo": "sigmoid", "kto": "kto"}


def model(read: Reader, online: bool) -> dict[str, Any]:
    """The `model` section."""
    path = read("model_name_or_path")
    trained = read("sft_model_path")
    if trained is not None:
        read.note(
            "sft_model_path",
            "model.path: it is what TRL trains; model_name_or_path names its tokenizer there",
        )
        path = trained
    if path is None:
        path = "MODEL"
        read.note("model_name_or_path", "missing: set model.path")
    section: dict[str, Any] = {"path": path}
    revision = read("model_revision")
    if revision not in (None, "main"):
        section["revision"] = revision
    section["quantization"] = _quantization(read)
    section["compute_dtype"] = _dtype(read)
    attention = read("attn_implementation")
    if str(attention) in _ATTENTION:
        section["attn_implementation"] = attention
    elif attention is not None:
        read.note("attn_implementation", f"{attention} is none of {', '.join(_ATTENTION)}: chosen by itself")
    section["gradient_checkpointing"] = bool(read("gradient_checkpointing"))
    longest = _max_length(read, online)
    if longest is not None:
        section["max_length"] = longest
    if read("chat_template_kwargs"):
        section["chat_template_kwargs"] = read("chat_template_kwargs")
    if read("model_init_kwargs"):
        read.note("model_init_kwargs", "left out: see the keys of `model`")
    return section


def _quantization(read: Reader) -> str | dict[str, Any]:
    four, eight = read("load_in_4bit"), read("load_in_8bit")
    kind = read("bnb_4bit_quant_type")
    if four:
        return {"name": str(kind), "double_quantization": bool(read("use_bnb_nested_quant"))}
    if not eight:
        read.note("load_in_4bit", "off, as in TRL; quantization: nf4 takes a quarter of the memory")
    return "int8" if eight else "none"


def _dtype(read: Reader) -> str:
    fp16, bf16 = read("fp16"), read("bf16")
    dtype, compute_dtype = read("dtype"), read("bnb_4bit_compute_dtype")
    if fp16:
        return "float16"
    if bf16:
        return "bfloat16"
    known = ("bfloat16", "float16", "float32")
    return next((str(name) for name in (compute_dtype, dtype) if name in known), "auto")


def _max_length(read: Reader, online: bool) -> int | None:
    if "max_length" in read.defaults:
        return read.count("max_length")
    if not online or read("max_prompt_length") is None:
        return None
    read.note(
        "max_prompt_length", "with max_completion_length in model.max_length; longer prompts are skipped"
    )
    return read.count("max_prompt_length") + read.count("max_completion_length")


def lora(read: Reader) -> dict[str, Any]:
    """The `lora` section; if TRL would train the whole model, a note says so."""
    section: dict[str, Any] = {
        "r": read("lora_r"),
        "alpha": read("lora_alpha"),
        "dropout": read("lora_dropout"),
        "target_modules": "all-linear",
        "use_rslora": bool(read("use_rslora")),
    }
    targets = read("lora_target_modules")
    if isinstance(targets, list) and len(targets) == 1 and targets[0] == "all-linear":
        targets = "all-linear"
    if targets:
        section["target_modules"] = targets
    if not read("use_peft"):
        read.note(
            "use_peft",
            "off: TRL trains every weight; here adapters train, which want about ten times the learning rate",
        )
    elif not targets:
        read.note("lora_target_modules", "not given: PEFT picks few layers by model; here all-linear")
    return section


def _dataset(read: Reader, trainer: str) -> dict[str, Any]:
    path, mixture = read("dataset_name"), read("datasets") or []
    config, split = read("dataset_config"), read("dataset_train_split")
    if isinstance(mixture, list) and mixture and isinstance(mixture[0], Mapping):
        first = mixture[0]
        path, config = first.get("path"), first.get("name", config)
        split = first.get("split", split)
        if first.get("data_files") is not None:
            read.note("datasets", "data_files are left out: name one file as dataset.path")
        if len(mixture) > 1:
            read.note("datasets", f"a stage reads one dataset: {len(mixture) - 1} more are left out")
    if path is None:
        path = "DATASET"
        read.note("dataset_name", "missing: set the stage's dataset.path")
    section: dict[str, Any] = {"path": path, "split": split}
    if config is not None:
        section["name"] = config
    columns = _columns(read, trainer)
    if columns:
        section["columns"] = columns
    system = read("system_prompt")
    if system:
        section["system"] = system
        read.note("system_prompt", "needs rows of messages; rows of plain text take no system message")
    section["on_bad_row"] = "skip"
    return section


def _columns(read: Reader, trainer: str) -> dict[str, str]:
    prompt, text = read("dataset_prompt_column"), read("dataset_text_field")
    columns = {}
    if prompt not in (None, "prompt"):
        columns["prompt"] = str(prompt)
    if trainer == "sft" and text not in (None, "text"):
        columns["text"] = str(text)
    return columns


def shared(read: Reader, trainer: str, updates: float = 1.0) -> dict[str, Any]:
    """The keys that every stage has; one step here is `updates` steps of TRL's."""
    steps = read.number("max_steps", -1)
    section: dict[str, Any] = {
        "dataset": _dataset(read, trainer),
        "learning_rate": read.number("learning_rate"),
        "num_train_epochs": read.number("num_train_epochs"),
        "lr_scheduler": _scheduler(read),
        "warmup": _warmup(read, updates),
        "max_grad_norm": read.number("max_grad_norm"),
        "optimizer": _optimizer(read),
        "weight_decay": read.number("weight_decay"),
        **_adam(read),
    }
    if steps > 0:
        section["max_steps"] = max(1, round(steps / updates))
    return section | _eval(read, updates)


def _scheduler(read: Reader) -> str:
    kind = str(read("lr_scheduler_type"))
    ours = {"constant_with_warmup": "constant"}.get(kind, kind)
    if ours in ("linear", "cosine", "constant"):
        return ours
    ours = "cosine" if "cosine" in kind else "linear"
    read.note("lr_scheduler_type", f"{kind} is not here: {ours}, which ends at 0")
    read("lr_scheduler_kwargs")
    return ours


def _warmup(read: Reader, updates: float) -> float:
    steps, ratio = read.number("warmup_steps", 0), read.number("warmup_ratio", 0.0)
    if not steps:
        return float(ratio)
    return float(steps) if steps < 1 else float(max(1, round(steps / updates)))


def _optimizer(read: Reader) -> str:
    kind = str(read("optim") or "adamw_torch")
    ours = _OPTIMIZERS.get(kind, "adamw")
    if not kind.startswith("adamw") and kind not in _OPTIMIZERS:
        read.note("optim", f"{kind} is not here: adamw")
    return ours


def _adam(read: Reader) -> dict[str, Any]:
    """AdamW's coefficients, if they are not the usual ones."""
    return {key: value for key, usual in _ADAM.items() if (value := read.number(key, usual)) != usual}


def _eval(read: Reader, updates: float) -> dict[str, Any]:
    strategy = str(read("eval_strategy") or "no")
    every, split = read.number("eval_steps"), read("dataset_test_split")
    read("eval_on_start")
    if strategy == "no":
        return {}
    section: dict[str, Any] = {"split": split}
    if strategy == "steps" and every:
        section["every"] = max(1, round(every / updates)) if every >= 1 else None
    if section.get("every") is None:
        section.pop("every", None)
        read.note(
            "eval_strategy", f"{strategy}: evaluated before and after; set eval.every to do it in between"
        )
    return {"eval": section}


def rows(read: Reader) -> int:
    """Number of rows of one update."""
    return read.count("per_device_train_batch_size") * read.count("gradient_accumulation_steps")


def _only_loss(read: Reader, trainer: str) -> None:
    loss_type, our_loss = read("loss_type"), _LOSSES[trainer]
    if loss_type not in (None, our_loss, [our_loss]):
        read.note(
            "loss_type", f"{loss_type} is not here: the recipe uses {our_loss}, which is another method"
        )


def sft(read: Reader, trainer: str) -> dict[str, Any]:
    """A stage of kind `sft`."""
    _only_loss(read, trainer)
    section = {"stage": "sft", **shared(read, trainer), "batch_size": rows(read)}
    section["packing"] = bool(read("packing"))
    for key in ("packing_strategy", "eval_packing"):
        read(key)
    if read("completion_only_loss") is not None:
        section["completion_only_loss"] = bool(read("completion_only_loss"))
    section["assistant_only_loss"] = bool(read("assistant_only_loss"))
    _skips(read)
    return section


def reward(read: Reader, trainer: str) -> dict[str, Any]:
    """A stage of kind `reward_model`."""
    section = {"stage": "reward_model", **shared(read, trainer), "batch_size": rows(read)}
    section["center_rewards_coefficient"] = read.number("center_rewards_coefficient", 0.0)
    section["normalize"] = "none"
    _skips(read)
    return section


def preference(read: Reader, trainer: str) -> dict[str, Any]:
    """A stage of kind `preference`."""
    _only_loss(read, trainer)
    section = {"stage": "preference", "method": trainer, **shared(read, trainer), "batch_size": rows(read)}
    keys = (
        ("beta", "label_smoothing")
        if trainer == "dpo"
        else ("beta", "desirable_weight", "undesirable_weight")
    )
    _skips(read)
    return section | {key: read.number(key) for key in keys}


def _skips(read: Reader) -> None:
    read("truncation_mode")
    read.note("max_length", "longer rows are skipped (on_bad_row), not cut")
