"""Writes models and tokenizers with transformers 5 in such a way that transformers 4 reads them correctly too.

transformers 4 reads no `rope_parameters`, and silently takes default rotary positions where `rope_theta` is missing.
It knows no tokenizer class `TokenizersBackend`, and expects extra special tokens under another name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engine import BaseSpec
from ..engine.base_spec import quiet
from ..recipe import Recipe

SHARD = "4GB"
_BACKENDS = ("TokenizersBackend",)
"""Tokenizer classes of transformers 5 that consist of a tokenizer.json alone."""
_LONGROPE = ("short_factor", "long_factor")
"""The only keys beside the type that transformers 4 accepts in `rope_scaling` of a Phi 3."""


def save_model(model: Any, folder: Path) -> None:
    """Write a model's weights and configurations.

    Args:
        model: of transformers.
        folder: that they are written to.
    """
    with quiet():
        model.save_pretrained(str(folder), max_shard_size=SHARD)
    _rewrite(folder / "config.json", with_older_names)


def save_tokenizer(recipe: Recipe, folder: Path, trust: bool, *, classifier: bool = False) -> Any:
    """Write the base's tokenizer; its chat template gets the recipe's arguments as defaults.

    Args:
        recipe: of the run.
        folder: that it is written to.
        trust: run code from the model's repository.
        classifier: use a padding token that ends no text.

    Returns:
        The tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        BaseSpec(recipe.model.path).location, revision=recipe.model.revision, trust_remote_code=trust
    )
    arguments = recipe.model.chat_template_kwargs
    if arguments and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = "".join([*map(_default, arguments.items()), tokenizer.chat_template])
    if classifier:
        tokenizer.pad_token = pad_token(tokenizer)
    tokenizer.save_pretrained(str(folder))
    _rewrite(folder / "tokenizer_config.json", tokenizer_with_older_names)
    return tokenizer


def pad_token(tokenizer: Any) -> str:
    """A padding token that ends no text: classifiers score the last token that is not padding."""
    special = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
    ends = {tokenizer.eos_token}
    usable = next((token for token in special if token is not None and token not in ends), None)
    return str(usable or tokenizer.convert_ids_to_tokens(0))


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration with the keys of transformers 4 added.

    Args:
        config: as transformers 5 writes it; configurations inside it are changed in the same way.
    """
    inner = {
        key: with_older_names(value)
        for key, value in config.items()
        if key.endswith("_config") and isinstance(value, Mapping)
    }
    merged = {**config, **inner}
    older = _older_rope(str(config.get("model_type")), config.get("rope_parameters"))
    if isinstance(config.get("dtype"), str):
        older["torch_dtype"] = config["dtype"]
    return {**merged, **older}  # rope_parameters are what the model was computed with


def _older_rope(kind: str, rope: Any) -> dict[str, Any]:
    """The parameters of rotary positions under the names of transformers 4."""
    if not isinstance(rope, Mapping):
        return {}
    local: dict[str, Any] = {}
    if kind.startswith("gemma3") and "sliding_attention" in rope:
        local = {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
        rope = rope["full_attention"]
    if "rope_theta" not in rope:
        return {}
    partial = rope.get("partial_rotary_factor")
    older = {**local, "rope_theta": rope["rope_theta"]}
    older |= {} if partial is None else {"partial_rotary_factor": partial}
    if kind.startswith("gpt_neox"):
        older |= {"rotary_emb_base": rope["rope_theta"]}
        older |= {} if partial is None else {"rotary_pct": partial}
    return older | _older_scaling(kind, rope)


def _older_scaling(kind: str, rope: Mapping[str, Any]) -> dict[str, Any]:
    rope_type = rope.get("rope_type", "default")
    if rope_type == "default":
        return {}
    if kind.startswith("phi3") and rope_type == "longrope":
        return {"rope_scaling": {"type": rope_type, **{key: rope[key] for key in _LONGROPE}}}
    apart = ("rope_theta", "partial_rotary_factor")
    return {"rope_scaling": {key: value for key, value in rope.items() if key not in apart}}


def tokenizer_with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration that transformers 4 reads, and transformers 5 too.

    Args:
        config: as transformers 5 writes it.
    """
    older = dict(config)
    if older.get("tokenizer_class") in _BACKENDS:
        older["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(older.get("extra_special_tokens"), list):
        older["additional_special_tokens"] = older.pop("extra_special_tokens")
    return older


def _rewrite(file: Path, change: Any) -> None:
    """Change a JSON file with a function from old to new content; a missing file is left out."""
    if file.is_file():
        changed = change(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _default(argument: tuple[str, Any]) -> str:
    """Jinja code that sets an argument of a chat template, unless the caller sets it."""
    name, value = argument
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return "none" if value is None else json.dumps(value)
