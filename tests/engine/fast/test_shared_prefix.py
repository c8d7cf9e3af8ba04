"""Prompts that rows share are read once, and nothing is different for it."""

import pytest
import torch

from rlhf_peft.engine import POLICY, LoraSpec, forwards
from rlhf_peft.engine.fast.shared_prefix import share

from ..support import ARCHITECTURES, load, stir

ROWS = ((0, 6), (1, 4), (0, 2), (0, 5), (1, 1))
"""Prompt and completion length of each row."""
PROMPTS = (5, 3)
WINDOWS = {"gemma2", "gemma3", "mistral"}
"""Models that do not attend to all that was before."""


def batch(vocabulary=40, seed=0):
    """Ids [B, T], starts and lengths; two prompts of different length, five rows."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(3, vocabulary, (n,), generator=generator) for n in PROMPTS]
    rows = [
        torch.cat([prompts[which], torch.randint(3, vocabulary, (new,), generator=generator)])
        for which, new in ROWS
    ]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, torch.tensor([PROMPTS[which] for which, _ in ROWS]), lengths


def actions(ids, starts, lengths):
    columns = torch.arange(ids.shape[1])
    return (columns >= starts[:, None]) & (columns < lengths[:, None])


def test_rows_are_taken_apart():
    ids, starts, lengths = batch()
    shared = share(ids, starts, lengths, worth=2.0)
    assert shared.prompts.shape == (2, 5) and shared.completions.shape == (5, 6)
    assert shared.which.tolist() == [0, 1, 0, 0, 1]
    assert shared.prompt_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert torch.equal(shared.prompts[1, 2:], ids[1, :3])
    assert shared.places[1].tolist() == [2, 3, 4, 5, 6, ids.shape[1], ids.shape[1]]


def test_sharing_that_saves_little_is_left():
    ids, starts, lengths = batch()
    assert share(ids, starts, lengths, worth=0.1) is None
    different = ids.clone()
    different[:, 0] = torch.arange(len(ids))
    assert share(different, starts, lengths) is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_states_are_the_same_in_every_architecture(folder_of, name):
    base = load(folder_of(name), "none")
    stir(base, POLICY)
    ids, starts, lengths = batch()
    mask = actions(ids, starts, lengths)
    shared = share(ids, starts, lengths, worth=2.0)
    with torch.no_grad(), base.role(POLICY, train=False):
        plain = base.forwards.logps(base.forwards.hidden(ids), ids, mask)[0]
        assert base.forwards.shares == (name not in WINDOWS)
        if not base.forwards.shares:
            return
        ours = base.forwards.logps(base.forwards.hidden(ids, shared=shared), ids, mask)[0]
    assert torch.allclose(plain, ours, atol=2e-5)


def gradient(base, ids, mask, shared):
    with base.training([POLICY]) as parameters, base.without_dropout(), base.role(POLICY):
        loss = base.forwards.logps(base.forwards.hidden(ids, shared=shared), ids, mask)[0].sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_gradients_are_the_same(folder_of, quantization):
    base = load(folder_of("llama"), quantization)
    stir(base, POLICY)
    ids, starts, lengths = batch()
    mask = actions(ids, starts, lengths)
    plain = gradient(base, ids, mask, None)
    ours = gradient(base, ids, mask, share(ids, starts, lengths, worth=2.0))
    assert float(plain.norm()) > 0
    assert torch.allclose(plain, ours, atol=1e-5 * float(plain.abs().max()))


def test_several_roles_read_their_shared_prompts(folder_of):
    base = load(folder_of("llama"), "nf4")
    base.roles.add("reward-0", head=True, lora=LoraSpec(r=3))
    base.roles.freeze_reference()
    stir(base, POLICY, 1), stir(base, "reward-0", 2)
    ids, starts, lengths = batch()
    shared = share(ids, starts, lengths, worth=2.0)
    roles = ["reference", "reward-0", POLICY]
    plain, ours = base.forwards.hidden_of(roles, ids), base.forwards.hidden_of(roles, ids, shared=shared)
    last = (torch.arange(len(ids)), lengths - 1)
    for role in roles:
        assert torch.allclose(plain[role][last], ours[role][last], atol=1e-5), role
    assert torch.allclose(
        base.forwards.rewards(plain["reward-0"], lengths, "reward-0"),
        base.forwards.rewards(ours["reward-0"], lengths, "reward-0"),
        atol=1e-5,
    )


def test_a_base_that_recomputes_does_not_share(folder_of):
    base = load(folder_of("llama"), "none", gradient_checkpointing=True)
    ids, starts, lengths = batch()
    assert not base.forwards.shares
    assert base.forwards.share_prompts(ids, actions(ids, starts, lengths)) is None


def test_whether_prompts_can_be_shared_is_tried_once(folder_of, monkeypatch):
    base, tried = load(folder_of("llama"), "none"), []
    monkeypatch.setattr(forwards, "share", lambda *given, **how: tried.append(1) or share(*given, **how))
    assert [base.forwards.shares for _ in range(3)] == [True] * 3
    assert len(tried) == 1
