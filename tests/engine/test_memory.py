import pytest
import torch

from rlhf_peft.engine import cap, reserve_of

GB = 1024**3


@pytest.mark.parametrize(
    ("free", "held", "before", "expected"),
    [(8, 0, 1.0, 0.95 * 8 / 16), (4, 2, 1.0, (2 + 0.95 * 4) / 16), (8, 0, 0.25, 0.25)],
)
def test_a_gpu_is_capped_at_what_is_free_less_a_reserve(monkeypatch, free, held, before, expected):
    capped = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GB, 16 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held * GB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: before)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: capped.append(share))
    cap(torch.device("cuda"))
    assert capped == [pytest.approx(expected)]


def test_the_cpu_is_not_capped(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", None)
    cap(torch.device("cpu"))
    assert reserve_of(100 * GB) == 5 * GB
