"""`classifier`: a reward model from the hub or a folder, loaded beside the shared base.

It can be any `AutoModelForSequenceClassification`, with its own tokenizer and chat template. It needs memory for
its own weights: a reward that was trained on the shared base (`learned`) needs far less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from rlhf_peft.plugin import (
    MemoryNeeds,
    ModelError,
    Options,
    RewardBatch,
    RewardError,
    Scores,
    check_safetensors,
)


class ClassifierOptions(Options):
    """Options of `classifier`: the model, its device, and which of its outputs is the score."""

    model: str = Field(description="Hub id or folder of a sequence-classification model.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    label: int | None = Field(
        None, ge=0, le=10**6, description="Which output is the score; null: the only one, else an error."
    )
    probability: bool = Field(
        False, description="Score by probability (softmax, or sigmoid of an only output), not by logit."
    )
    batch_size: int = Field(8, gt=0, le=2**20, description="Rows in one forward.")
    max_length: int | None = Field(
        None,
        gt=0,
        le=2**24,
        description="Longest row in tokens, cut at the start; null: what the model allows.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights; auto: as they are stored."
    )


class Classifier:
    """Scores prompt and completion with a separate model, in the run's process.

    Raises:
        ModelError: the model cannot be loaded, or it has several outputs and none is chosen.
    """

    Options = ClassifierOptions
    roles: tuple[str, ...] = ()
    timeout: float | None = None
    in_process = True
    metrics: ClassVar[Mapping[str, str]] = {
        "truncated": "share of rows cut at the start to the classifier's longest length"
    }

    def __init__(self, options: ClassifierOptions) -> None:
        self.options = options
        self.device = torch.device(_device() if options.device == "auto" else options.device)
        self.tokenizer, self.model = self._load()
        count = self.model.config.num_labels
        if (options.label is None and count > 1) or (options.label or 0) >= count:
            raise ModelError(
                f"reward classifier: {options.model} has {count} outputs ({_labels(self.model.config)}). Choose one: "
                f"label=0 to label={count - 1}."
            )

    @classmethod
    def memory(cls, options: ClassifierOptions) -> MemoryNeeds:
        """Memory of the model's weights, from its configuration.

        Raises:
            ModelError: the model has no configuration.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification

        try:
            config = AutoConfig.from_pretrained(options.model, revision=options.revision)
        except (OSError, ValueError) as error:
            raise ModelError(f"reward classifier: {options.model} {_reason(error)}") from error
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
        stored = getattr(config, "dtype", None) or torch.float32
        dtype = stored if options.dtype == "auto" else getattr(torch, options.dtype)
        return MemoryNeeds(model_bytes=sum(p.numel() for p in model.parameters()) * dtype.itemsize)

    def _load(self) -> tuple[Any, Any]:
        """Load tokenizer and model."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        o = self.options
        dtype = "auto" if o.dtype == "auto" else getattr(torch, o.dtype)
        arguments: dict[str, Any] = {"revision": o.revision, "trust_remote_code": False}
        check_safetensors(o.model, o.revision)
        try:
            tokenizer = AutoTokenizer.from_pretrained(o.model, **arguments)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                o.model, dtype=dtype, use_safetensors=True, output_loading_info=True, **arguments
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"reward classifier: {o.model} {_reason(error)}") from error
        missing = sorted(loading["missing_keys"])
        if missing:
            raise ModelError(
                f"reward classifier: the weights of {o.model} lack {len(missing)} tensors of {type(model).__name__}, "
                f"the first {missing[0]}; they would be random. Expected a trained sequence classifier, with its head; "
                "a language model is none."
            )
        tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, model.to(self.device).eval().requires_grad_(False)

    def score(self, batch: RewardBatch) -> Scores:
        """One score for each completion; logs how many rows were truncated.

        Raises:
            RewardError: the prompts are messages and the tokenizer has no chat template.
        """
        texts = [self._text(p, c) for p, c in zip(batch.prompts, batch.completions, strict=True)]
        ids = [self._ids(text, isinstance(p, str)) for text, p in zip(texts, batch.prompts, strict=True)]
        longest = self._longest()
        cut = sum(len(row) > longest for row in ids) / max(1, len(ids))
        ids = [row[-longest:] for row in ids]
        row = torch.empty(len(ids))
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), self.options.batch_size):
            rows = order[start : start + self.options.batch_size]
            row[rows] = self._forward([ids[i] for i in rows])
        return Scores(row=row, metrics={"truncated": cut})

    def _text(self, prompt: Any, completion: Any) -> str:
        """Prompt and completion as one text."""
        if isinstance(prompt, str):
            return prompt + str(completion)
        if self.tokenizer.chat_template is None:
            raise RewardError(
                f"reward classifier: the prompts are messages, and the tokenizer of {self.options.model} has no chat "
                "template. Use plain prompts, or a reward model for chats."
            )
        return str(self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False))

    def _ids(self, text: str, special: bool) -> list[int]:
        """Token ids of a text; special tokens are added only if no chat template has written them."""
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _longest(self) -> int:
        """Most tokens of a row."""
        known = getattr(self.model.config, "max_position_embeddings", None) or 2**30
        return min(self.options.max_length or known, known, self.tokenizer.model_max_length)

    @torch.no_grad()
    def _forward(self, ids: list[list[int]]) -> torch.Tensor:
        """Scores of rows of token ids, [n]."""
        inputs = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        logits = self.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits.float()
        # `export` stores a reward head's constant in the config, because a classifier has no parameter for it.
        logits = logits + getattr(self.model.config, "score_offset", 0.0)
        if self.options.probability:
            logits = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
        return logits[:, self.options.label or 0].cpu()


def _reason(error: Exception) -> str:
    """Why a model cannot be loaded, and what to do."""
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text:
        return (
            "brings code of its own, which a reward by name does not run. If you trust it, load it in a function of "
            "your own: --reward FILE.py:FUNC."
        )
    first = text.splitlines()[0].rstrip(".")
    expected = "a folder or a hub id with config.json, a tokenizer and safetensors weights"
    return f"cannot be loaded ({first}). Expected {expected}."


def _device() -> str:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def _labels(config: Any) -> str:
    return ", ".join(f"{number}: {name}" for number, name in list(config.id2label.items())[:8])
