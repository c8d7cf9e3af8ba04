"""Loss and gradient against TRL's own trainers, on the same tensors."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer, GRPOTrainer, RLOOTrainer

from rlhf_peft.builtin.algorithms import Cispo, Grpo, Gspo, OnlineDpo, Rloo
from rlhf_peft.plugin import Outputs, maths

from .rollouts import PROMPT, Ask, minibatch, scored

SCORES = [1.0, -0.5, 0.25, 2.0, 0.5, -1.0]
GROUP = [0, 0, 0, 1, 1, 1]


class Accelerator:
    num_processes, sync_gradients, device = 1, True, torch.device("cpu")

    def gather(self, x):
        return x

    def reduce(self, x, reduction="sum"):
        return x

    gather_for_metrics = gather


def trainer(data, logps, **settings):
    """As much of a trainer as its loss reads; log-probabilities are given, not computed."""
    completion = logps[:, PROMPT:]
    return SimpleNamespace(
        **{
            "aux_loss_enabled": False,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "importance_sampling_level": "token",
            "beta": 0.0,
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "loss_type": "grpo",
            "use_vllm": False,
            "current_gradient_accumulation_steps": 1,
            "max_completion_length": 8,
            "_entropy_bonus_enabled": False,
            "model": SimpleNamespace(training=True),
            "accelerator": Accelerator(),
            "args": SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
            "_metrics": {"train": defaultdict(list)},
            "_get_per_token_logps_and_entropies": lambda *a, **k: (
                completion,
                torch.zeros_like(completion),
                None,
            ),
            **settings,
        }
    )


def inputs(data, advantages):
    """TRL's batch: the completion's columns only."""
    n = len(data)
    mask = data.mask[:, PROMPT:]
    return {
        "prompt_ids": torch.ones(n, PROMPT, dtype=torch.int64),
        "prompt_mask": torch.ones(n, PROMPT, dtype=torch.int64),
        "completion_ids": torch.ones(mask.shape, dtype=torch.int64),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": data.old_logps[:, PROMPT:],
        "old_logps": (data.old_logps[:, PROMPT:] * mask).sum(1),
        "ref_per_token_logps": data.ref_logps[:, PROMPT:],
        "num_items_in_batch": mask.sum(),
    }


def ours(algorithm, data, logps, splits=((0, 1, 2, 3, 4, 5),)):
    """Our loss over the rows, in any split, and its gradient."""
    algorithm.requests([], Ask())
    columns, _ = algorithm.prepare(data)
    everything = list(range(len(data)))
    loss = torch.zeros(())
    for rows in splits:
        rows = list(rows)
        batch = minibatch(data, columns, rows, everything)
        terms, _ = algorithm.loss(Outputs(logps[rows]), batch)
        if terms.dim() == 1:
            loss = loss + terms.sum() / batch.total_rows
        else:
            loss = loss + maths.weighted_sum(terms, algorithm.weights(batch))
    return loss, torch.autograd.grad(loss, logps)[0], columns


def moved(data, by=0.15):
    """Log-probabilities after some updates: some ratios are beyond the clip."""
    generator = torch.Generator().manual_seed(7)
    return (data.old_logps + by * torch.randn(data.old_logps.shape, generator=generator)).requires_grad_()


def same(mine, theirs, logps):
    gradient = torch.autograd.grad(theirs, logps)[0]
    loss, own, _ = mine
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    assert torch.allclose(own, gradient, atol=1e-6)
    assert float(gradient.abs().sum()) > 0.01


@pytest.mark.parametrize("splits", [((0, 1, 2, 3, 4, 5),), ((0, 5), (1, 2, 3), (4,))])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_grpo(loss_type, beta, splits):
    data = scored(SCORES, GROUP)
    logps = moved(data, 0.3)
    algorithm = Grpo(Grpo.Options(loss_type=loss_type, beta=beta, epsilon_high=0.28))
    mine = ours(algorithm, data, logps, splits)
    settings = {"loss_type": loss_type, "beta": beta, "epsilon_high": 0.28}
    theirs = GRPOTrainer._compute_loss(
        trainer(data, logps, **settings), None, inputs(data, mine[2]["advantages"])
    )
    same(mine, theirs, logps)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_truncated_completions_count_as_zeros_where_trl_counts_them(loss_type):
    """TRL empties the masks of rows that did not end, and takes its means over all rows."""
    data = scored(SCORES, GROUP, finish=["eos", "length", "eos", "eos", "eos", "length"])
    logps = moved(data, 0.3)
    algorithm = Grpo(Grpo.Options(loss_type=loss_type, mask_truncated_completions=True))
    algorithm.requests([], Ask())
    selection = algorithm.select(data, 0)
    assert selection.zero_loss.tolist() == [False, True, False, False, False, True]
    assert torch.equal(selection.train, ~selection.zero_loss)
    data.train, data.zero_loss = selection.train, selection.zero_loss
    columns, _ = algorithm.prepare(data)
    kept = selection.train.nonzero().flatten().tolist()
    batch = minibatch(data, columns, kept, total_rows=int((selection.train | selection.zero_loss).sum()))
    terms, _ = algorithm.loss(Outputs(logps[kept]), batch)
    loss = maths.weighted_sum(terms, algorithm.weights(batch))
    given = inputs(data, columns["advantages"])
    given["completion_mask"] = given["completion_mask"] * selection.train[:, None]
    given["num_items_in_batch"] = given["completion_mask"].sum()
    theirs = GRPOTrainer._compute_loss(trainer(data, logps, loss_type=loss_type), None, given)
    same((loss, torch.autograd.grad(loss, logps)[0], columns), theirs, logps)


def test_truncated_completions_of_groups_that_are_not_used_do_not_count():
    data = scored(
        [1.0, 1.0, 1.0, 2.0, 0.5, -1.0], GROUP, finish=["eos", "eos", "length", "eos", "eos", "length"]
    )
    algorithm = Grpo(Grpo.Options(mask_truncated_completions=True, dynamic_sampling=True, max_rounds=1))
    algorithm._prompts = 2
    selection = algorithm.select(data, 0)
    assert selection.zero_loss.tolist() == [False] * 5 + [True]
    assert selection.train.tolist() == [False, False, False, True, True, False]


def test_gspo_is_grpo_with_sequence_level_ratios():
    data = scored(SCORES, GROUP)
    logps = moved(data, 0.001)
    mine = ours(Gspo(Gspo.Options()), data, logps, ((0, 3), (1, 2, 4, 5)))
    settings = {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}
    theirs = GRPOTrainer._compute_loss(
        trainer(data, logps, **settings), None, inputs(data, mine[2]["advantages"])
    )
    same(mine, theirs, logps)


def test_cispo():
    data = scored(SCORES, GROUP)
    logps = moved(data, 0.8)
    mine = ours(Cispo(Cispo.Options(epsilon_high=1.5)), data, logps, ((0, 3), (1, 2, 4, 5)))
    settings = {"loss_type": "cispo", "epsilon_high": 1.5}
    theirs = GRPOTrainer._compute_loss(
        trainer(data, logps, **settings), None, inputs(data, mine[2]["advantages"])
    )
    same(mine, theirs, logps)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_as_trl_computes_them(scale):
    data = scored(SCORES, GROUP)
    algorithm = Grpo(Grpo.Options(scale_rewards=scale))
    advantages = algorithm.prepare(data)[0]["advantages"]
    rewards = torch.tensor(SCORES)
    groups = rewards.view(2, 3)
    std = {"group": groups.std(1, keepdim=True).expand(2, 3).reshape(-1), "batch": rewards.std()}.get(scale)
    expected = rewards - groups.mean(1, keepdim=True).expand(2, 3).reshape(-1)
    expected = expected if std is None else expected / (std + 1e-4)
    assert torch.allclose(advantages, expected, atol=1e-6)


def test_rloo():
    data = scored(SCORES, GROUP)
    logps = moved(data, 0.1)
    mine = ours(Rloo(Rloo.Options(num_generations=3)), data, logps, ((0, 5), (1, 2, 3, 4)))
    kl = ((data.old_logps - data.ref_logps) * data.mask).sum(1)
    rewards = (torch.tensor(SCORES) - 0.05 * kl).view(2, 3)
    expected = (rewards - (rewards.sum(1, keepdim=True) - rewards) / 2).reshape(-1)
    assert torch.allclose(mine[2]["advantages"], expected, atol=1e-6)
    theirs = RLOOTrainer._compute_loss(trainer(data, logps), None, inputs(data, expected))
    same(mine, theirs, logps)


def test_online_ipo_is_of_sums_as_in_trls_online_trainer():
    """Its loss stands inside `training_step`: (logits - 1 / (2 beta))^2, of log-ratios summed over tokens."""
    data = scored(SCORES, GROUP)
    algorithm = OnlineDpo(OnlineDpo.Options(beta=0.3, loss_type="ipo", num_generations=3))
    rows = algorithm.select(data, 0).train.nonzero().flatten().tolist()
    best, worst = [0, 3], [1, 5]
    assert sorted(best + worst) == rows
    data = data.rows(best + worst)
    data.rollout.group = torch.tensor([0, 1, 0, 1])
    logps = moved(data)
    ratios = ((logps - data.ref_logps) * data.mask).sum(1)
    theirs = (ratios[:2] - ratios[2:] - 1 / 0.6).square().mean()
    same(ours(algorithm, data, logps, ((0, 2), (1, 3))), theirs, logps)


def test_online_dpo_has_the_loss_of_trls_dpo():
    loss_type = "sigmoid"
    data = scored(SCORES, GROUP)
    algorithm = OnlineDpo(OnlineDpo.Options(beta=0.3, loss_type=loss_type, num_generations=3))
    train = algorithm.select(data, 0).train
    assert train.nonzero().flatten().tolist() == [0, 1, 3, 5]
    order = [0, 3, 1, 5]  # best of each group, then the worst: TRL's order
    data = data.rows(order)
    data.rollout.group = torch.tensor([0, 1, 0, 1])
    logps = moved(data)
    mine = ours(algorithm, data, logps, ((0, 2), (1, 3)))
    mask = data.mask[:, PROMPT:].long()
    completion_mask = torch.cat([torch.zeros(4, 1, dtype=torch.int64), mask], 1)
    ids = torch.ones(completion_mask.shape, dtype=torch.int64)
    chosen, rejected = ((data.ref_logps[:, PROMPT:] * mask).sum(1)).chunk(2)
    batch = {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": completion_mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    zero = torch.zeros(mask.shape)
    said = SimpleNamespace(
        log_probs=logps[:, PROMPT:] * mask, entropy=zero, mean_logits=zero, is_top1=zero.bool()
    )
    settings = {
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_types": [loss_type],
        "loss_weights": [1.0],
        "beta": 0.3,
        "use_weighting": False,
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    theirs = DPOTrainer._compute_loss(trainer(data, logps, **settings), lambda **_: said, batch, False)
    same(mine, theirs, logps)
