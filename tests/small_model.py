"""A model for tests that train and do not look at what was learnt: the shipped one with a single layer."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from safetensors.torch import load_file, save_file

import rlhf_peft

SHIPPED = Path(rlhf_peft.__file__).parent / "assets" / "tiny"


@cache
def one_layer() -> str:
    """The folder of the model; it is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="rlhf-peft-tests-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for file in SHIPPED.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((SHIPPED / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    weights = load_file(SHIPPED / "model.safetensors")
    kept = {
        name: weight for name, weight in weights.items() if ".layers." not in name or ".layers.0." in name
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)
