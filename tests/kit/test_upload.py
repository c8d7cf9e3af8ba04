"""Copies to a device."""

import torch

from rlhf_peft.kit.upload import upload


def test_on_a_cpu_nothing_is_copied():
    x = torch.arange(3)
    assert upload(x, "cpu") is x and upload(x, torch.device("cpu")) is x


def test_a_card_gets_it_from_pinned_memory(monkeypatch):
    """The host does not wait; in a dry run (tests/dryrun) every copy from ordinary memory counts as a wait."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: calls.append((a, k)) or self)
    upload(torch.arange(3), "cuda:0")
    assert calls == ["pinned", (("cuda:0",), {"non_blocking": True})]
