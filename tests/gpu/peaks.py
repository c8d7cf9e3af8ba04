"""Peak memory of one forward and backward, of scoring and of decoding: on a card, or on a simulated one.

    python -m tests.gpu.peaks FOLDER MAJOR.MINOR

prints the peaks of a simulated card of that compute capability as a JSON line, in a process of its own; it exits with
77 and a reason where a dry run is not possible. Both sides are measured by the same function.
"""

import json
import os
import sys
from pathlib import Path

from rlhf_peft.dryrun.shim import DryRunUnavailable, install

UNAVAILABLE = 77
TOKENS, ROWS, PROMPT, NEW = 8192, 32, 128, 8


def peaks(folder, device):
    """Bytes of each phase above those that the model takes, by name, and `model` itself; decoding is 4-bit."""
    import torch

    from rlhf_peft.engine import POLICY
    from tests.gpu.support import VOCABULARY, base_of

    found = {}
    for name, recompute in (("update", False), ("update, recomputed", True)):
        empty = torch.cuda.memory_allocated(device)
        base = base_of(folder, device, gradient_checkpointing=recompute)
        found["model"] = torch.cuda.memory_allocated(device) - empty
        ids = (torch.arange(TOKENS) % (VOCABULARY - 3) + 3).view(8, -1)
        mask = torch.ones_like(ids, dtype=torch.bool)

        def score(base=base, ids=ids, mask=mask):
            with torch.no_grad(), base.role(POLICY, train=False):
                base.forwards.logps(base.forwards.hidden(ids.to(base.device)), ids, mask)

        def update(base=base, ids=ids, mask=mask):
            with base.training([POLICY]) as parameters, base.role(POLICY):
                base.forwards.logps(base.forwards.hidden(ids.to(base.device)), ids, mask)[0].sum().backward()
            for parameter in parameters:
                parameter.grad = None

        def decode(base=base, ids=ids):
            prompts = [(ids[0, :PROMPT].roll(shift) % VOCABULARY).tolist() for shift in range(ROWS)]
            with base.decoding.as_role(POLICY, False) as model:
                decoder = model.start(prompts, NEW)
                tokens = torch.full((ROWS,), 5, device=base.device)
                for _ in range(NEW):
                    decoder.step(tokens)

        found[name] = _peak(update, device)
        if not recompute:
            found["scoring"], found["decoding"] = _peak(score, device), _peak(decode, device)
        del base, score, update, decode
    return found


def _peak(work, device):
    """Of the second time: the first one compares fast paths with plain ones."""
    import gc

    import torch

    work()
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def simulated(folder, capability):
    """The same on a simulated card with enough memory."""
    import dataclasses

    from rlhf_peft.dryrun.process import begin
    from tests.dryrun.work import RTX_4070

    card = dataclasses.replace(RTX_4070, memory=80 * 2**30, capability=capability)
    with begin(card):
        return peaks(folder, "cuda:0")


if __name__ == "__main__":
    try:
        install()
    except DryRunUnavailable as error:
        print(error)
        sys.exit(UNAVAILABLE)
    major, minor = map(int, sys.argv[2].split("."))
    print("RESULT", json.dumps(simulated(Path(sys.argv[1]), (major, minor))), flush=True)
    os._exit(0)  # torch before 2.10 cannot join the threads of devices that are not there.
