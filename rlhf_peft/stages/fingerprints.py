"""What a run stands on, as digests: whoever goes on with it must stand on the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine import SharedBase
from ..recipe import Recipe
from ..registry import Registry

FREE = ("output_dir", "name")
"""Keys of a recipe that change no result."""
NAMED = ("path", "revision", "quantization", "double_quantization", "chat_template_kwargs")
"""Keys of a model that other digests are of."""
MOST_ROWS = 20_000
WHOLE = 2**28
"""Weight files up to this size are hashed whole, of larger ones the beginning, where names and shapes are."""


def digest(value: Any) -> str:
    """sha256 of a value as JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def fingerprints(
    recipe: Recipe, registry: Registry, base: SharedBase, code: Sequence[Path] = ()
) -> dict[str, str]:
    """Digests by name: the recipe and each of its stages, base, quantization, chat template, plugins, files of code."""
    written = recipe.model_dump(mode="json", exclude=set(FREE))
    stages = {stage.pop("name"): {**stage, "checkpoint": None} for stage in written.pop("stages")}
    model = written.pop("model")
    found = {
        "recipe": digest(
            {**written, "max_length": model["max_length"], "tokens": model["tokens_per_forward"]}
        ),
        "base": digest([model["path"], model["revision"], _files(Path(model["path"]))]),
        "quantization": digest([model["quantization"], model["double_quantization"], str(base.dtype)]),
        "chat_template": digest([base.tokenizer.chat_template, model["chat_template_kwargs"]]),
        "plugins": digest(registry.versions()),
    }
    found |= {file.name: _hash(file) for file in code}
    return found | {f"stages.{name}": digest(stage) for name, stage in stages.items()}


def rows_digest(rows: Any) -> str:
    """Of a dataset: of all its rows, or of so many at even distances where it has more."""
    found = hashlib.sha256(f"{len(rows)}".encode())
    for number in range(0, len(rows), -(-len(rows) // MOST_ROWS)):
        found.update(digest(rows[number]).encode())
    return found.hexdigest()


def _files(folder: Path) -> list[Any]:
    """Names, sizes and hashes of a model folder's files; nothing for an id, whose revision says it."""
    if not folder.is_dir():
        return []
    kinds = (".safetensors", ".json", ".model", ".txt")
    files = [file for file in sorted(folder.iterdir()) if file.suffix in kinds]
    return [(file.name, file.stat().st_size, _hash(file)) for file in files]


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.sha256(handle.read(WHOLE)).hexdigest()
