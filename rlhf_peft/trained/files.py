"""Writes models and tokenizers so that transformers 4 reads the same out of them as transformers 5, which writes them.

transformers 4 reads no `rope_parameters`, and takes a default rope without a word where it misses `rope_theta`; it
knows no tokenizer class `TokenizersBackend`, and expects extra special tokens under another name.
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
"""Tokenizer classes of transformers 5 that hold nothing but a tokenizer.json."""
_LONGROPE = ("short_factor", "long_factor")
"""All that transformers 4 takes in `rope_scaling` of a Phi 3, beside the type."""


def save_model(model: Any, folder: Path) -> None:
    """Write a model's weights and configurations.

    Args:
        model: of transformers.
        folder: where to.
    """
    with quiet():
        model.save_pretrained(str(folder), max_shard_size=SHARD)
    _rewrite(folder / "config.json", with_older_names)


def save_tokenizer(recipe: Recipe, folder: Path, trust: bool, *, classifier: bool = False) -> Any:
    """Write the base's tokenizer, its chat template with the recipe's arguments as defaults.

    Args:
        recipe: of the run.
        folder: where to.
        trust: run code from the model's repository.
        classifier: give it a token to pad with that ends no text.

    Returns:
        The tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        BaseSpec(recipe.model.path).location, revision=recipe.model.revision, trust_remote_code=trust
    )
    given = recipe.model.chat_template_kwargs
    if given and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = "".join([*map(_default, given.items()), tokenizer.chat_template])
    if classifier:
        tokenizer.pad_token = pad_token(tokenizer)
    tokenizer.save_pretrained(str(folder))
    _rewrite(folder / "tokenizer_config.json", tokenizer_with_older_names)
    return tokenizer


def pad_token(tokenizer: Any) -> str:
    """A token to pad with that ends no text: classifiers score the last token that is none."""
    special = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
    ends = {tokenizer.eos_token}
    found = next((token for token in special if token is not None and token not in ends), None)
    return str(found or tokenizer.convert_ids_to_tokens(0))


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration that says everything under the names of transformers 4 as well.

    Args:
        config: as transformers 5 writes it; configurations inside it are treated alike.
    """
    inner = {
        key: with_older_names(value)
        for key, value in config.items()
        if key.endswith("_config") and isinstance(value, Mapping)
    }
    given = {**config, **inner}
    older = _older_rope(str(config.get("model_type")), config.get("rope_parameters"))
    if isinstance(config.get("dtype"), str):
        older["torch_dtype"] = config["dtype"]
    return {**given, **older}  # rope_parameters are what the model was computed with


def _older_rope(kind: str, rope: Any) -> dict[str, Any]:
    """What transformers 4 calls the parameters of rotary positions."""
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
    """A tokenizer's configuration that transformers 4 reads; transformers 5 knows its names.

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
    """Change a JSON file of a folder, where it is there."""
    if file.is_file():
        changed = change(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _default(argument: tuple[str, Any]) -> str:
    """Jinja that gives an argument of a chat template its value, unless the caller does."""
    name, value = argument
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return "none" if value is None else json.dumps(value)
