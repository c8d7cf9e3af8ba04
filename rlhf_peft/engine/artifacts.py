"""Adapters and heads on disk: saved in PEFT's own format, and taken in from runs, folders and the hub.

A role's folder holds `adapter_model.safetensors` and `adapter_config.json`, `head.safetensors` where the role has
a scalar head, and `base.json`: the fingerprint of the base. Pickled files are not read.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import LoraConfig, PeftConfig
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import atomic
from ..errors import ModelError
from . import adapters
from . import fingerprint as fingerprints
from .head import ScalarHead

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
HEAD_FILE = "head.safetensors"
LORA = "LORA"
SCORE_KEYS = ("score.weight", "v_head.summary.weight", "classifier.weight")
"""Where other tools keep a scalar head inside the adapter's own file."""
SCORE_MODULES = frozenset(key.split(".")[0] for key in SCORE_KEYS)


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


@dataclass(frozen=True, slots=True)
class RoleSnapshot:
    """A copy of a role at one time, in main memory.

    Attributes:
        config: of its adapter, as it is written down; None where it has none of its own.
        weights: PEFT's state dict.
        head: tensors of its scalar head, or None.
        base: fingerprint of the base that it stands on.
    """

    config: LoraConfig | None
    weights: dict[str, Tensor]
    head: dict[str, Tensor] | None
    base: Mapping[str, str]


def snapshot(
    model: Any, adapter: str | None, path: str, base: Mapping[str, str], head: ScalarHead | None = None
) -> RoleSnapshot:
    """A copy of an adapter and a head.

    Args:
        model: PEFT's.
        adapter: its name; None: there is none.
        path: hub id or path of the base, which is written down.
        base: its fingerprint.
        head: the scalar head, if there is one.
    """
    config, weights = None, {}
    if adapter is not None:
        config = copy.deepcopy(model.peft_config[adapter])
        config.inference_mode = True
        config.base_model_name_or_path = path
        for name in ("target_modules", "exclude_modules"):
            # PEFT holds sets, whose order is another in each process.
            if isinstance(value := getattr(config, name), set):
                setattr(config, name, sorted(value))
        weights = _copies(adapters.state(model, adapter))
    return RoleSnapshot(config, weights, None if head is None else _copies(head.state_dict()), base)


def write(snapshot: RoleSnapshot, folder: Path) -> None:
    """Write a role's folder; loads with `PeftModel.from_pretrained` where it has an adapter.

    All files are written aside first: on a full disk the folder stays as it was.

    Raises:
        OSError: it cannot be written, and names the folder.
    """
    with atomic.files(folder) as aside:
        if snapshot.config is not None:
            save_file(snapshot.weights, aside / ADAPTER_FILE, metadata={"format": "pt"})
            snapshot.config.save_pretrained(str(aside))
        if snapshot.head is not None:
            save_file(snapshot.head, aside / HEAD_FILE, metadata={"format": "pt"})
        fingerprints.write(aside, snapshot.base)
    if snapshot.head is None:
        (folder / HEAD_FILE).unlink(missing_ok=True)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}


def resolve(reference: str, role: str) -> Path:
    """The folder of an adapter that a recipe's `init` names: a run, a folder, or a hub id.

    The first reward is `reward-0` or simply `reward`, whichever a run has.

    Raises:
        ModelError: nothing is there.
    """
    key = role.rsplit("-", 1)[0]
    path = Path(reference).expanduser()
    if path.is_dir():
        names = [role] + ([f"{role}-0"] if role == key else [key] if role == f"{key}-0" else [])
        for folder in (path, *(path / "adapters" / n for n in names), *(path / n for n in names)):
            if (folder / CONFIG_FILE).is_file():
                return folder
        raise ModelError(
            f"init.{key}: {reference} is neither an adapter ({CONFIG_FILE}) nor a run that has trained a "
            f"{role} (adapters/{role}/)."
        )
    if reference.startswith((".", "/", "~")) or reference.count("/") != 1:
        raise ModelError(
            f"init.{key}: {reference} does not exist. Expected a run folder, an adapter or a hub id."
        )
    return _from_hub(reference, key)


def members(reference: str, prefix: str) -> list[str]:
    """Names of the ensemble `<prefix>-0`, `<prefix>-1`, ... that a run or folder has; empty where it has none."""
    path = Path(reference).expanduser()
    names = {
        folder.parent.name
        for place in (path / "adapters", path)
        for folder in place.glob(f"{prefix}-*/{CONFIG_FILE}")
        if folder.parent.name.removeprefix(f"{prefix}-").isdigit()
    }
    return sorted(names, key=lambda name: int(name.rpartition("-")[2]))


def _from_hub(reference: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(reference, allow_patterns=["*.safetensors", "*.json"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"init.{key}: {reference} is no folder here and cannot be fetched from the hub ({first})."
        ) from error


def read(folder: Path) -> Stored:
    """Read a role's folder.

    Raises:
        ModelError: a file is missing or is not what it should be, or the adapter is of a kind that roles
        cannot be.
    """
    config = _config(folder)
    tensors = _tensors(folder / ADAPTER_FILE)
    if tensors is None:
        raise ModelError(
            f"{folder}: no {ADAPTER_FILE} beside {CONFIG_FILE} (pickled .bin files are not read)."
        )
    weights, scores = _split_head(tensors)
    return Stored(config, weights, _tensors(folder / HEAD_FILE) or scores, folder)


def _config(folder: Path) -> LoraConfig:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and config.get("peft_type", LORA) == LORA:
            _Written.model_validate(config)
        with warnings.catch_warnings():
            # PEFT tells of keys that it ignores.
            warnings.simplefilter("ignore", UserWarning)
            config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = _first_wrong(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(f"{path}: cannot be read as an adapter's configuration ({reason}).") from error
    if not isinstance(config, LoraConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ModelError(f"{folder}: an adapter of type {kind}; only LoRA adapters can be roles.")
    wrong = adapters.unsupported(config)
    if wrong:
        raise ModelError(
            f"{folder}: the adapter has {wrong}; roles are plain LoRA. Merge it into the base instead."
        )
    whole = set(config.modules_to_save or ()) - SCORE_MODULES
    if whole:
        raise ModelError(
            f"{folder}: the adapter replaces whole modules of the base ({', '.join(sorted(whole))}), which "
            "all roles share. Merge it into the base instead."
        )
    return config


Rank = Annotated[int, Field(ge=1, le=2**16)]
"""A larger one is no low rank, and would take all memory before its tensors are looked at."""


class _Written(BaseModel):
    """What a LoRA configuration must hold to be one; PEFT itself looks at no type."""

    model_config = ConfigDict(strict=True, extra="ignore")

    r: Rank = 8
    lora_alpha: FiniteFloat = 8.0
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = False
    bias: str = "none"
    target_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    alpha_pattern: dict[str, FiniteFloat] = Field(default_factory=dict)
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None


def _first_wrong(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None where there is none."""
    if not path.is_file():
        return None
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own and the operating system's
        raise ModelError(f"{path}: cannot be read ({error}); it is damaged or cut short.") from error


def _split_head(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """An adapter's tensors without a scalar head that is among them, and that head in our own form."""
    key = next((key for key in weights if key.endswith(SCORE_KEYS)), None)
    if key is None:
        return weights, None
    place = key.removesuffix("weight")
    bias = weights.get(f"{place}bias")
    head = {
        "weight": weights[key].float(),
        "bias": torch.zeros(1) if bias is None else bias.float(),
        "shift": torch.zeros(1),
        "scale": torch.ones(1),
    }
    return {k: v for k, v in weights.items() if not k.startswith(place)}, head


def read_role(folder: Path) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
    """The tensors of a role's adapter and head; None for what it has not.

    Raises:
        ModelError: a file is damaged.
    """
    weights = read(folder).weights if (folder / CONFIG_FILE).is_file() else None
    return weights, _tensors(folder / HEAD_FILE)


def load_head(hidden: int, tensors: Mapping[str, Tensor], where: str) -> ScalarHead:
    """A scalar head from stored tensors; every key must fit.

    Raises:
        ModelError: a key is missing, unexpected or misshapen.
    """
    head = ScalarHead(hidden)
    expected = {key: list(value.shape) for key, value in head.state_dict().items()}
    given = {key: list(value.shape) for key, value in tensors.items()}
    if expected != given:
        raise ModelError(f"{where}: the head holds {given}, this base needs {expected}: one score a row.")
    head.load_state_dict(dict(tensors))
    return head
