"""The work of `drive`: cases and measures in one process that is on a card."""

import gc
import json
import os
import time
import traceback
from pathlib import Path

import torch

import rlhf_peft
from rlhf_peft.dryrun.meter import Card
from rlhf_peft.dryrun.mode import plain_ids
from rlhf_peft.dryrun.process import begin
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry
from rlhf_peft.stages.rl import loop
from tests.dryrun.cases import CASES, write_files
from tests.dryrun.measures import MEASURES

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


def interrupted(recipe, registry):
    """Run a recipe until its second step begins."""
    plain = loop.train_step

    def step(parts, number):
        if number == 2:
            raise KeyboardInterrupt
        return plain(parts, number)

    loop.train_step = step
    try:
        rlhf_peft.run(recipe, registry=registry, overwrite=True)
    except KeyboardInterrupt:
        return
    finally:
        loop.train_step = plain
    raise AssertionError("the run was not interrupted")


def one(run, registry, folder, name):
    """What one case counted, or how it failed."""
    case = CASES[name]
    recipe = load(case(folder), (), plugins=registry)
    run.meter.lap()
    try:
        with run:
            if "resume" in name:
                interrupted(recipe, registry)
            rlhf_peft.run(recipe, registry=registry, overwrite=True, resume="resume" in name)
    except Exception as error:
        lines = [
            f"{frame.filename}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if "rlhf_peft/" in frame.filename
        ]
        return {"error": f"{type(error).__name__}: {error}", "lines": lines[-6:]}
    counts = run.meter.lap()
    gc.collect()
    return {
        "launches": counts.launches,
        "graphs": counts.kernels["graph"],
        "peak": counts.peak,
        "host_reads": [[kind, place, count] for (kind, place), count in counts.host_reads.most_common()],
        "left": run.meter.live,
    }


def main(folder, *names):
    folder = Path(folder)
    write_files(folder)
    registry = Registry.load(no_plugins=True)
    run = begin(RTX_4070, cards=2)
    for name, measure in MEASURES.items():
        if not names or name in names:
            run.made_up = plain_ids
            with run:
                print("RESULT", json.dumps([name, measure(run, registry, folder)]), flush=True)
    run.made_up = Drawn()
    for name in [name for name in CASES if not names or name in names]:
        began = time.process_time()
        result = one(run, registry, folder, name)
        result["seconds"] = round(time.process_time() - began, 1)
        print("RESULT", json.dumps([name, result]), flush=True)
    os._exit(0)  # torch before 2.10 cannot join the threads of devices that are not there.
