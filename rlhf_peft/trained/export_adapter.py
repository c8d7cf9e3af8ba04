"""Exports a role as a PEFT adapter, and the command that serves it with vLLM."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..data.inspect import generation_config
from ..engine import POLICY, BaseSpec
from ..engine.artifacts import ADAPTER_FILE, CONFIG_FILE, load_head, read_role
from ..engine.ends import end_ids
from ..engine.fingerprint import FILE as BASE_FILE
from ..errors import RunFolderError
from ..kit.quantizer import LoadCode, Quantizer
from ..recipe import Recipe
from ..runs import History
from .export_types import CAUSAL, CLASSIFIER, Exported, Place, Target, classifier_head
from .files import save_tokenizer
from .model_card import card, generates, use_adapter

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM takes as --max-lora-rank."""


def export_adapter(
    recipe: Recipe,
    quantizer: Quantizer,
    history: History,
    adapter: Path,
    place: Place,
    role: str,
    target: Target,
    trust: bool,
) -> Exported:
    """Write an adapter with its tokenizer and a model card.

    Args:
        recipe: of the run.
        quantizer: of the recipe.
        history: of the run.
        adapter: folder of the run's adapter.
        place: where the export goes.
        role: policy, or a reward, which becomes a sequence classifier.
        target: peft or vllm.
        trust: run code from the model's repository.
    """
    location, folder = BaseSpec(recipe.model.path).location, place.temporary
    offset = None
    if role == POLICY:
        shutil.copyfile(adapter / ADAPTER_FILE, folder / ADAPTER_FILE)
        changes: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    else:
        offset = _with_head(adapter, folder)
        changes = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    if (adapter / BASE_FILE).is_file():
        shutil.copyfile(adapter / BASE_FILE, folder / BASE_FILE)
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    config |= {**changes, "base_model_name_or_path": location}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    tokenizer = save_tokenizer(recipe, folder, trust, classifier=role != POLICY)
    use = use_adapter(recipe, location, place.name, CAUSAL if role == POLICY else CLASSIFIER, quantizer)
    generate_code = (
        generates(tokenizer, end_ids(tokenizer, generation_config(location))) if role == POLICY else ""
    )
    (folder / "README.md").write_text(
        card(recipe, history, role, use + generate_code, quantizer, offset=offset), encoding="utf-8"
    )
    exported = Exported(place.folder, use, offset=offset)
    if target == "vllm":
        code = quantizer.load_code(())
        command = _vllm_command(recipe, location, place, history.name, int(config.get("r", 8)), code)
        exported.commands = [*([code.vllm_needs] if code is not None and code.vllm_needs else []), command]
    return exported


def _with_head(adapter: Path, folder: Path) -> float:
    """Write a reward's adapter and head as PEFT stores a classifier; returns the constant missing in its scores.

    Raises:
        RunFolderError: the role has no head.
    """
    weights, tensors = read_role(adapter)
    if weights is None or tensors is None:
        raise RunFolderError(f"{adapter}: has no head, so it scores nothing.")
    head = load_head(tensors["weight"].shape[1], tensors, str(adapter))
    weight, offset = classifier_head(head)
    save_file(
        {**weights, "base_model.model.score.weight": weight}, folder / ADAPTER_FILE, metadata={"format": "pt"}
    )
    return offset


def _vllm_command(
    recipe: Recipe, location: str, place: Place, name: str, rank: int, code: LoadCode | None
) -> str:
    """The command that serves an adapter with vLLM, on a quantized base where vLLM can load one."""
    most = next((known for known in RANKS if rank <= known), rank)
    revision = f" --revision {shlex.quote(recipe.model.revision)}" if recipe.model.revision else ""
    quantized = f" {code.vllm}" if code is not None and code.vllm else ""
    template = "chat_template.jinja"
    has_template = (place.temporary / template).is_file()
    chat = f" --chat-template {shlex.quote(f'{place.name}/{template}')}" if has_template else ""
    lora = (
        f"--enable-lora --max-lora-rank {most} --lora-modules {shlex.quote(name)}={shlex.quote(place.name)}"
    )
    return f"vllm serve {shlex.quote(location)}{revision}{quantized} {lora}{chat}"
