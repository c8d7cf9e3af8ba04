import pytest
import torch
from rlhf_peft_reinforce import Reinforce, ReinforceOptions

from rlhf_peft.plugin import Minibatch, Outputs
from rlhf_peft.testing import check_algorithm, make_batch

NAN = float("nan")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_generations": 3},
        {"beta": 0.1, "kl_placement": "reward", "kl_estimator": "k1"},
        {"entropy_coef": 0.1},
    ],
)
def test_it_keeps_the_rules_of_algorithms(options):
    check_algorithm(Reinforce, options)


def advantages(algorithm, scores):
    batch = make_batch(scores=scores)
    batch.train = ~batch.scores.isnan()
    columns, figures = algorithm.prepare(batch)
    return columns["advantages"].tolist(), figures["baseline"]


def test_the_baseline_follows_the_scores_by_hand():
    algorithm = Reinforce(ReinforceOptions(baseline_decay=0.75))
    assert advantages(algorithm, [1.0, 3.0, 2.0, NAN, 0.0, 4.0]) == ([-1.0, 1.0, 0.0, 0.0, -2.0, 2.0], 2.0)
    assert algorithm.baseline == 2.0
    assert advantages(algorithm, [6.0] * 6) == ([4.0] * 6, 2.0)
    assert algorithm.baseline == pytest.approx(0.75 * 2 + 0.25 * 6)
    again = Reinforce(ReinforceOptions(baseline_decay=0.75))
    again.load_state_dict(algorithm.state_dict())
    assert advantages(again, [3.0] * 6) == ([0.0] * 6, 3.0)


def test_the_gradient_is_the_score_functions():
    algorithm = Reinforce(ReinforceOptions())
    mask = torch.tensor([[False, True, True]])
    logps = torch.tensor([[0.0, -1.0, -2.0]], requires_grad=True)
    minibatch = Minibatch(mask, {"advantages": torch.tensor([3.0])}, 2, 1, old_logps=logps.detach())
    terms, _ = algorithm.loss(Outputs(logps), minibatch)
    terms[mask].sum().backward()
    assert logps.grad.tolist() == [[0.0, -3.0, -3.0]]
