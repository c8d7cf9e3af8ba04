"""What was saved comes back the same in another process: logits, rewards and values, bit for bit."""

import hashlib
import subprocess
import sys

import pytest
import torch

from rlhf_peft.engine import POLICY, VALUE

from .support import load, stir, tokens

LOAD = """
import sys
import torch
torch.set_num_threads(1)
from tests.engine.support import load
from tests.engine.test_new_process import said
base = load(sys.argv[1], sys.argv[2])
base.roles.load("policy", sys.argv[3])
for name in ("reward-0", "value"):
    base.roles.load(name, sys.argv[3], head=True)
print(*said(base))
"""


def said(base):
    """Hashes of what the roles say of some tokens."""
    ids, found = tokens(3, 11), []
    with torch.no_grad():
        with base.role(POLICY, train=False):
            found.append(base.lm(input_ids=ids).logits)
        for name in ("reward-0", VALUE):
            with base.role(name, train=False):
                hidden = base.forwards.hidden(ids)
            found.append(base.forwards.rewards(hidden, torch.tensor([11, 7, 9]), name))
            if name == VALUE:
                found.append(base.forwards.values(hidden))
    return [hashlib.sha256(values.float().numpy().tobytes()).hexdigest() for values in found]


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("none", marks=pytest.mark.slow)])
def test_in_a_new_process_everything_is_the_same(folder_of, tmp_path, quantization):
    base = load(folder_of("llama"), quantization)
    base.roles.add("reward-0", head=True)
    base.roles.add(VALUE, head=True)
    for number, name in enumerate((POLICY, "reward-0", VALUE)):
        stir(base, name, seed=number)
        base.roles.save(name, tmp_path / "adapters" / name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = said(base)
    torch.set_num_threads(threads)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(folder_of("llama")), quantization, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == expected and len(set(expected)) == 4
