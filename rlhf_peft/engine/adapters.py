"""Adapters and heads: made, copied, saved in PEFT's own format, and taken in from runs, folders and the hub.

A role's folder holds `adapter_model.safetensors` and `adapter_config.json`, and `head.safetensors` where the role has
a scalar head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ModelError
from .head import ScalarHead

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
HEAD_FILE = "head.safetensors"
SCORE_KEYS = ("score.weight", "v_head.summary.weight", "classifier.weight")
"""Where other tools keep a scalar head inside the adapter's own file."""


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """The shape of an adapter, as a recipe's `lora` gives it."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False

    def config(self, base: str) -> LoraConfig:
        """PEFT's configuration; `base` is the hub id or path that is written into it."""
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.use_rslora,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """An adapter read from a folder.

    Attributes:
        config: PEFT's.
        weights: PEFT's state dict.
        head: tensors of a scalar head, or None.
        folder: where it was.
    """

    config: LoraConfig
    weights: dict[str, Tensor]
    head: dict[str, Tensor] | None
    folder: Path


def state(model: Any, adapter: str) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names."""
    found: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return found


def copy(model: Any, source: str, target: str) -> None:
    """Give one adapter the weights of another of the same shape."""
    weights = {key: value.detach().clone() for key, value in state(model, source).items()}
    load_state(model, target, weights, f"a copy of {source}")


def load_state(model: Any, adapter: str, weights: Mapping[str, Tensor], where: str) -> None:
    """Load an adapter's tensors; every key must fit.

    Raises:
        ModelError: a key is missing, unexpected or misshapen.
    """
    expected = {key: tuple(value.shape) for key, value in state(model, adapter).items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    misshapen = sorted(key for key in expected.keys() & given.keys() if expected[key] != given[key])
    for keys, what in ((missing, "lacks"), (extra, "has no place for"), (misshapen, "has other shapes for")):
        if keys:
            raise ModelError(
                f"{where}: the adapter {what} {len(keys)} tensors, the first {keys[0]}. It was made for another base "
                "or with another lora.target_modules or lora.r."
            )
    set_peft_model_state_dict(model, dict(weights), adapter_name=adapter)


def save(model: Any, adapter: str, folder: Path, base: str, head: ScalarHead | None = None) -> None:
    """Write a role's folder; loads with `PeftModel.from_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in state(model, adapter).items()}
    save_file(weights, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = LoraConfig(**{**model.peft_config[adapter].to_dict(), "inference_mode": True})
    config.base_model_name_or_path = base
    config.save_pretrained(str(folder))
    if head is not None:
        tensors = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
        save_file(tensors, folder / HEAD_FILE, metadata={"format": "pt"})


def resolve(reference: str, role: str) -> Path:
    """The folder of an adapter that a recipe's `init` names: a run, a folder, or a hub id.

    Raises:
        ModelError: nothing is there.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        for folder in (path, path / "adapters" / role, path / "adapters" / f"{role}-0", path / role):
            if (folder / CONFIG_FILE).is_file():
                return folder
        raise ModelError(
            f"init.{role}: {reference} is neither an adapter ({CONFIG_FILE}) nor a run that has trained a {role} "
            f"(adapters/{role}/)."
        )
    if reference.startswith((".", "/", "~")) or reference.count("/") != 1:
        raise ModelError(f"init.{role}: {reference} does not exist. Expected a run folder, an adapter or a hub id.")
    return _from_hub(reference, role)


def _from_hub(reference: str, role: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, allow_patterns=["*.safetensors", "*.json"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"init.{role}: {reference} is no folder here and cannot be fetched from the hub ({first})."
        ) from error


def read(folder: Path) -> Stored:
    """Read a role's folder.

    Raises:
        ModelError: a file is missing or is not what it should be.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / ADAPTER_FILE)
        head = load_file(folder / HEAD_FILE) if (folder / HEAD_FILE).is_file() else None
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no {ADAPTER_FILE} beside {CONFIG_FILE} (pickled .bin files are not read).") from error
    except Exception as error:
        raise ModelError(f"{folder}: cannot be read as an adapter ({error}).") from error
    if not isinstance(config, LoraConfig):
        raise ModelError(f"{folder}: a {config.peft_type} adapter; only LoRA adapters can be roles.")
    weights, scores = _split_head(weights)
    return Stored(config, weights, head or scores, folder)


def _split_head(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    for key in list(weights):
        if key.endswith(SCORE_KEYS):
            rest = {k: v for k, v in weights.items() if k.rsplit(".", 1)[0] != key.rsplit(".", 1)[0]}
            head = {"weight": weights[key].float()}
            bias = weights.get(key.rsplit(".", 1)[0] + ".bias")
            head["bias"] = torch.zeros(1) if bias is None else bias.float()
            return rest, {**head, "shift": torch.zeros(1), "scale": torch.ones(1)}
    return weights, None


def load_head(head: ScalarHead, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a scalar head; every key must fit.

    Raises:
        ModelError: a key is missing, unexpected or misshapen.
    """
    expected = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    if expected != given:
        raise ModelError(f"{where}: the head holds {given}, this base needs {expected}.")
    head.load_state_dict(dict(tensors))
