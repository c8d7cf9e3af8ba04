"""What a run stands on, as digests: whoever goes on with it must stand on the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.cache import release
from ..engine import SharedBase
from ..engine.fingerprint import digest, sampled_hash
from ..recipe import Recipe
from ..registry import Registry

FREE = ("output_dir", "name", "tracking")
"""Keys of a recipe that change no result."""
MODEL_KEYS = ("model.max_length", "model.tokens_per_forward")
"""Keys of the model that go into the fingerprint of the recipe."""
LOADED = {
    "base": ("model.path", "model.revision"),
    "quantization": ("model.quantization",),
    "dtype": ("model.compute_dtype", "device"),
    "chat_template": ("model.chat_template_kwargs",),
}
"""Fingerprints of the model that is loaded, with the keys that they follow from."""
MOST_ROWS = 20_000


def fingerprints(
    recipe: Recipe, registry: Registry, base: SharedBase, code: Sequence[Path] = ()
) -> dict[str, str]:
    """Digests by name: the recipe and each of its stages, base, quantization, chat template, plugins, files of code."""
    written = recipe.model_dump(mode="json", exclude=set(FREE))
    stages = {stage.pop("name"): {**stage, "checkpoint": None} for stage in written.pop("stages")}
    model = written.pop("model")
    digests = {
        "recipe": digest(
            {**written, "max_length": model["max_length"], "tokens": model["tokens_per_forward"]}
        ),
        **base.fingerprint,
        "dtype": str(base.dtype).removeprefix("torch."),
        "chat_template": digest([base.tokenizer.chat_template, model["chat_template_kwargs"]]),
        "plugins": digest(registry.versions()),
    }
    digests |= {file.name: sampled_hash(file) for file in code}
    return digests | {f"stages.{name}": digest(stage) for name, stage in stages.items()}


def rows_digest(rows: Any) -> str:
    """Of a dataset: of all its rows, or of so many at even distances where it has more."""
    content = hashlib.sha256(f"{len(rows)}".encode())
    for count, number in enumerate(range(0, len(rows), -(-len(rows) // MOST_ROWS))):
        content.update(digest(rows[number]).encode())
        if count % 256 == 0:
            release()
    release()
    return content.hexdigest()
