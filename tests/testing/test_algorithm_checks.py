"""Every rule of algorithms is broken once on purpose, and the check says which."""

from dataclasses import replace

import pytest
import torch

from rlhf_peft import maths
from rlhf_peft.plugin import (
    PolicyGradient,
    PolicyOptions,
    Selection,
)
from rlhf_peft.testing import (
    ConformanceError,
    check_algorithm,
)
from rlhf_peft.testing.rules import require_plain

from .support import with_


class Plain(PolicyGradient):
    Options = PolicyOptions

    def advantages(self, batch, scores):
        return torch.where(batch.train, scores - scores[batch.train].mean(), 0.0)


def twice(self, prompts, context):
    return [replace(r, seed=1) for r in PolicyGradient.requests(self, prompts, context)]


def own_normaliser(self, minibatch):
    mask = minibatch.mask
    return maths.token_weights(mask, "token", int(mask.sum()), len(mask))


def flat(self, minibatch):
    return torch.full(minibatch.mask.shape, 1.0 / minibatch.total_tokens)


def detached(self, outputs, minibatch):
    terms, figures = PolicyGradient.loss(self, outputs, minibatch)
    return terms.detach() + 0.0 * outputs.logps, figures


def leaking(self, outputs, minibatch):
    return outputs.logps.sum(-1), {}


def asking(self, options):
    PolicyGradient.__init__(self, options)
    self.needs |= {"old_logps"}


def sloppy(self, batch):
    return {"advantages": batch.old_logps.mean(-1) * batch.scores}, {}


ALGORITHMS = {
    "seeds": (dict(requests=twice), "two requests have one seed"),
    "no rows": (dict(select=lambda self, s, r: Selection(s.scores > 99)), "trains on no row"),
    "silent": (
        dict(select=lambda self, s, r: Selection(torch.ones(len(s), dtype=torch.bool))),
        "all abstained",
    ),
    "shape": (dict(prepare=lambda self, s: ({"advantages": s.scores[:2]}, {})), r"expected \[N\] or"),
    "nan": (
        dict(prepare=lambda self, s: ({"advantages": s.scores / 0 * 0}, {})),
        "advantages is not finite",
    ),
    "figures": (dict(metrics={}), "`metrics` has no formula"),
    "no gradient": (
        dict(no_gradient=lambda self, s: torch.ones(len(s), dtype=torch.bool)),
        "no_gradient names a row",
    ),
    "unit": (dict(minibatch_units=lambda self, s: torch.zeros(len(s))), "N\\] int64"),
    "normaliser": (dict(weights=own_normaliser), "in two micro-batches"),
    "padding": (dict(weights=flat), "not 0 outside the mask"),
    "detached": (dict(loss=detached), "gradient is 0 for every token"),
    "leak": (dict(loss=leaking), "outside the mask"),
    "outside": (dict(prepare=sloppy, __init__=asking), "prepare with NaN|outside the mask"),
    "value": (dict(value="own"), 'with the role "value"'),
    "state": (dict(state_dict=lambda self: {"x": object()}), "holds a object"),
    "round trip": (
        dict(state_dict=lambda self: {"x": id(self)}, load_state_dict=lambda self, state: None),
        "the same state",
    ),
}


def test_good_algorithms_pass():
    check_algorithm(Plain)
    check_algorithm(Plain, {"num_generations": 2, "beta": 0.1, "entropy_coef": 0.1})


@pytest.mark.parametrize("case", ALGORITHMS)
def test_a_bad_algorithm_is_told(case):
    changes, message = ALGORITHMS[case]
    with pytest.raises(ConformanceError, match=message):
        check_algorithm(with_(Plain, **changes))


def test_states_are_plain():
    require_plain({"a": [1, 2.0, None, "x", {"b": torch.ones(2)}]}, "it")
    with pytest.raises(ConformanceError, match="keys are text"):
        require_plain({1: 2}, "it")
