"""Random models of the cases: one folder for each, made in bfloat16 where it is computed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from ..models import save_tokenizer
from .cases import SHAPES


def folder_of(root: Path, shape: str, model: str, device: torch.device) -> tuple[Path, float]:
    """The folder of a model, and the seconds that it took to make it; 0 where it was there."""
    folder = root / shape / model.replace(" ", "-")
    if (folder / "config.json").is_file():
        return folder, 0.0
    begun, unfinished = time.perf_counter(), folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _make(unfinished, dict(SHAPES[shape][model]), device)
    unfinished.rename(folder)
    return folder, time.perf_counter() - begun


def _make(folder: Path, shape: dict[str, object], device: torch.device) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        shape.pop("kind"),
        **shape,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    save_tokenizer(folder, config.vocab_size)
