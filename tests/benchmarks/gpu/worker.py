"""`python -m tests.benchmarks.gpu.worker JSON`: some cases in one process, one after the other.

It prints `BEGIN name` before each case and `RESULT json` after it. A case that raises is the last one: what its frames
hold stays in memory, and `driver` begins a new process for the others.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..setup import recipe_of, rl_stage
from . import micro, steps
from .cases import SIZES
from .models import folder_of

ON_A_BASE = {"decoding": micro.decoding, "scoring": micro.scoring, "update": micro.update}
WHOLE = {"ppo": steps.ppo, "grpo": steps.grpo, "trl_grpo": steps.trl_grpo}
WORK = {"ceilings", *ON_A_BASE, *WHOLE}


class Worker:
    """Measures cases; a base that the next case needs too is kept.

    Args:
        shape: full or toy.
        models: folder of the models.
        device: a card, or the CPU where the code is tried.
    """

    def __init__(self, shape: str, models: Path, device: torch.device) -> None:
        self._shape, self._models, self._device = shape, models, device
        self._key: tuple[Any, ...] | None = None
        self._base: Any = None

    def figures(self, work: str, options: dict[str, Any]) -> dict[str, Any]:
        """What a case measured."""
        sizes = SIZES[self._shape]
        if work == "ceilings":
            return micro.ceilings(self._device, sizes)
        folder, seconds = folder_of(self._models, self._shape, options["model"], self._device)
        made = {"seconds of making the model": seconds} if seconds else {}
        if work in ON_A_BASE:
            base = self._loaded(folder, options.get("quantization", "nf4"), options.get("recompute", False))
            return {**ON_A_BASE[work](base, sizes, options), **made}
        self._let_go()
        return {**WHOLE[work](folder, sizes, options, self._device), **made}

    def _loaded(self, folder: Path, quantization: str, recompute: bool) -> Any:
        from rlhf_peft.api import load_base
        from rlhf_peft.engine import POLICY

        key = folder, quantization, recompute
        if key != self._key:
            self._let_go()
            case = {"prompt": 4, "new": 4, "prompts": 1, "steps": 1}
            stage = rl_stage(self._models, {"name": "grpo"}, [{"name": "even"}], case)
            model = {"quantization": quantization, "gradient_checkpointing": recompute}
            self._base, self._key = load_base(recipe_of(folder, [stage], path=str(folder), **model)), key
            with torch.no_grad():
                for parameter in self._base.roles.parameters(POLICY):
                    parameter.normal_(std=0.01)
        return self._base

    def _let_go(self) -> None:
        self._base = self._key = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, Any]:
    """What the cases run on."""
    names = ("torch", "transformers", "accelerate", "trl", "peft", "bitsandbytes")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    if device.type != "cuda":
        return {"device": "cpu", **found}
    card = torch.cuda.get_device_properties(device)
    return {
        "device": card.name,
        "memory": card.total_memory,
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        **found,
    }


def main(text: str) -> None:
    """Measure some cases; see `driver` for what it is given."""
    given = json.loads(text)
    device = torch.device(given["device"])
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())  # Torch's caps want an index.
    models = Path(given["models"])
    models.mkdir(parents=True, exist_ok=True)
    print("MACHINE", json.dumps(machine(device)), flush=True)
    worker = Worker(given["shape"], models, device)
    for case in given["cases"]:
        print("BEGIN", case["name"], flush=True)
        try:
            found = {"figures": worker.figures(case["work"], case["options"])}
        except Exception as error:  # the other cases are measured all the same
            lines = traceback.format_exc().strip().splitlines()
            found = {"error": f"{type(error).__name__}: {error}"[:500], "traceback": lines[-12:]}
        print("RESULT", json.dumps(found), flush=True)
        if "error" in found:
            sys.exit(1)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
