"""What a base is, as digests: an adapter is of use on the base that it was trained on, and on no other."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .base_spec import BaseSpec

FILE = "base.json"
"""Beside a saved adapter or head: the fingerprint of the base that it was trained on."""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""What a digest looks like, unlike a fingerprint in words."""
NAMES = {"base": "base model", "quantization": "quantization", "chat_template": "chat template"}
BLOCK, BLOCKS = 2**16, 2**12
"""Of a file with more bytes than so many blocks, blocks at even distances are read: 256 MB."""
PASSING = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")
"""Keys of config.json that do not change what a model says."""


def fingerprint(source: BaseSpec, tokenizer: Any) -> dict[str, str]:
    """Digests of a base's weights and of its chat template, and its quantization in words.

    The same weights have the same digest whether they are named by hub id or by folder.
    """
    return {
        "base": _weights(source),
        "quantization": source.quantizer.label,
        "chat_template": digest(tokenizer.chat_template),
    }


def digest(value: Any) -> str:
    """sha256 of a value as JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def short(value: str | None) -> str:
    """A digest for a message; words as they are."""
    if value is None:
        return "none"
    return value[:4] if len(value) == 64 else value


def refusal(folder: Path, mine: Mapping[str, str], accepted: Collection[str]) -> str | None:
    """Why what was saved in a folder is not for this base; None where it is, or where nothing is known of its base.

    Args:
        folder: of the saved adapter or head.
        mine: fingerprint of this base.
        accepted: names of what may differ.

    Raises:
        ModelError: what is known of its base cannot be read.
    """
    theirs = read(folder)
    other = [name for name in mine if name in theirs and theirs[name] != mine[name] and name not in accepted]
    if not other:
        return None
    differences = ", ".join(
        f"another {NAMES[name]} ({short(theirs[name])}, here {short(mine[name])})" for name in other
    )
    names = ",".join([*sorted(accepted), *other])
    return (
        f"{folder}: was trained on {differences}. Use it on the base it was trained on, or accept the difference by "
        f"name: --allow-changed {names}"
    )


def write(folder: Path, fingerprint: Mapping[str, str]) -> None:
    """Write a fingerprint beside what was trained on that base."""
    (folder / FILE).write_text(json.dumps(dict(fingerprint), indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, str]:
    """The fingerprint beside something saved; empty where there is none.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        fingerprint = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(fingerprint, dict) or not all(isinstance(value, str) for value in fingerprint.values()):
        raise ModelError(f"{path}: expected an object of texts: the fingerprint of a base.")
    return fingerprint


def _weights(source: BaseSpec) -> str:
    folder = _folder(source)
    if folder is None:
        return digest([source.path, source.revision])
    files = [folder / name for name in _names(folder) if (folder / name).is_file()]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    lasting = {key: value for key, value in config.items() if key not in PASSING}
    return digest([lasting, [(file.name, file.stat().st_size, sampled_hash(file)) for file in files]])


def _names(folder: Path) -> list[str]:
    """The files that transformers reads weights from."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def _folder(source: BaseSpec) -> Path | None:
    """Where the base's files are: the folder itself, or what the hub's cache holds; None where neither is known."""
    place = Path(source.location).expanduser()
    if place.is_dir():
        return place
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return Path(file).parent if isinstance(file, str) else None


def sampled_hash(file: Path) -> str:
    """sha256 of a file, or of blocks at even distances where it is large."""
    size, content = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as handle:
        if size <= BLOCK * BLOCKS:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        for number in range(BLOCKS):
            handle.seek(number * (size - BLOCK) // (BLOCKS - 1))
            content.update(handle.read(BLOCK))
    return content.hexdigest()
