"""What the processes of one run tell each other, with two of them."""

import os
import socket
import subprocess
import sys

import pytest

from rlhf_peft.errors import UsageError
from rlhf_peft.session.ranks import Ranks

CODE = """
import torch
from rlhf_peft.session.ranks import Ranks

ranks = Ranks()
ranks.start("cpu")
weight = torch.nn.Parameter(torch.full((3,), float(ranks.rank + 5)))
ranks.same([weight])
weight.grad = torch.ones(3) if ranks.rank else None
ranks.sum_gradients([weight])
print(weight.tolist(), weight.grad.tolist(), weight.requires_grad)
ranks.stop()
"""


def test_all_take_the_main_processs_values_and_sum_their_gradients():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CODE],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == "[5.0, 5.0, 5.0] [1.0, 1.0, 1.0] True"


def test_several_processes_do_not_share_one_card(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"device: cuda:1 names one card, and 2 processes.*Use device=cuda"):
        Ranks().start("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    Ranks().start("cuda:1")
