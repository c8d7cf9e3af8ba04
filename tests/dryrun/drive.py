"""Runs recipes on a card that is not there, in a process of its own, and prints a JSON line for each.

    python -m tests.dryrun.drive FOLDER CASE ...
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

from rlhf_peft.dryrun.shim import DryRunUnavailable, install

UNAVAILABLE = 77

try:
    install()
except DryRunUnavailable as error:
    print(error)
    sys.exit(UNAVAILABLE)

import torch

import rlhf_peft
from rlhf_peft.dryrun.meter import Card
from rlhf_peft.dryrun.process import begin
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry
from tests.dryrun.cases import CASES, write_files

RTX_4070 = Card("RTX 4070", 12 * 2**30, 504e9, 29e12, 58e12, 46, (8, 9))
EOS = 2


class Drawn:
    """Drawn tokens: each row ends after a few steps, the rows at different ones."""

    def __init__(self):
        self.reads = 0

    def __call__(self, x):
        self.reads += 1
        ids = torch.arange(x.numel()).reshape(x.shape)
        return torch.where((ids + self.reads) % 5 == 0, EOS, 30).to(x.dtype)


def one(run, registry, folder, name):
    """What one case counted, or how it failed."""
    case = CASES[name]
    recipe = load(case(folder), (), plugins=registry)
    run.meter.lap("between")
    try:
        with run:
            rlhf_peft.run(recipe, registry=registry, overwrite=True)
            if "resume" in name:  # The run has ended; its last stage is done again from its first checkpoint.
                rlhf_peft.run(recipe, registry=registry, resume=True, resume_from="rl-1")
    except Exception as error:
        lines = [
            f"{frame.filename}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "rlhf_peft/" in frame.filename
        ]
        return {"error": f"{type(error).__name__}: {error}", "lines": lines[-6:]}
    counts = run.meter.lap(name)
    gc.collect()
    return {
        "launches": counts.launches,
        "peak": counts.peak,
        "host_reads": [[kind, place, count] for (kind, place), count in counts.host_reads.most_common()],
        "left": run.meter.live,
    }


def main(folder, *names):
    folder = Path(folder)
    write_files(folder)
    registry = Registry.load(no_plugins=True)
    run = begin(RTX_4070, cards=2, made_up=Drawn())
    for name in names or CASES:
        print("RESULT", json.dumps([name, one(run, registry, folder, name)]), flush=True)
    os._exit(0)  # torch before 2.10 cannot join the threads of devices that are not there.


if __name__ == "__main__":
    main(*sys.argv[1:])
