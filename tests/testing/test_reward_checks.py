"""Every rule of rewards is broken once on purpose, and the check says which."""

import random

import pytest
import torch
from pydantic import ConfigDict

from rlhf_peft.plugin import (
    Options,
    Scores,
)
from rlhf_peft.testing import (
    ConformanceError,
    check_reward,
)

from .support import Letters, giving, with_


def lengths(batch):
    return torch.tensor([float(len(text)) for text in batch.texts])


def spoil(batch):
    batch.columns["prompt"] = []
    return Scores(row=lengths(batch))


def counting():
    calls = iter(range(10**6))
    return giving(lambda batch: Scores(row=lengths(batch) + next(calls)))


def plain(self, batch):
    return Scores(row=lengths(batch))


class Loose(Options):
    """One without a description."""

    size: int = 3


class Open(Options):
    """Takes anything."""

    model_config = ConfigDict(extra="allow")


REWARDS = {
    "count": (dict(score=giving(lambda b: Scores(row=torch.zeros(3)))), r"gave scores \(3,\) for 4"),
    "infinite": (dict(score=giving(lambda b: Scores(row=lengths(b) / 0.0))), "infinite score"),
    "integers": (dict(score=giving(lambda b: Scores(row=lengths(b).long()))), "int64 scores"),
    "no scores": (dict(score=giving(lengths)), "gives Scores, found Tensor"),
    "spoils": (dict(score=giving(spoil)), "changed the batch"),
    "torch stream": (dict(score=giving(lambda b: Scores(row=torch.rand(len(b))))), "torch's global random"),
    "random stream": (
        dict(score=giving(lambda b: Scores(row=lengths(b) * random.random()))),
        "random's global",
    ),
    "memory": (dict(score=counting()), "gave other scores"),
    "group": (
        dict(score=giving(lambda b: Scores(row=lengths(b) - lengths(b).mean()))),
        "check it with compares_rows=True",
    ),
    "token": (dict(score=giving(lambda b: Scores(lengths(b), torch.zeros(4, 2)))), r"token scores \(4, 2\)"),
    "metric": (dict(score=giving(lambda b: Scores(lengths(b), metrics={"x": float("nan")}))), "metric 'x'"),
    "formula": (
        dict(score=giving(lambda b: Scores(lengths(b), metrics={"x": 1.0}))),
        "`metrics` has no formula for x",
    ),
    "extra": (
        dict(score=giving(lambda b: Scores(lengths(b), extra={"x": [1]}))),
        "extra 'x' is 4 JSON values",
    ),
    "roles": (dict(roles=["reward"]), "tuple of words"),
    "timeout": (dict(timeout=0), "seconds or None"),
    "plain with roles": (dict(roles=("reward",), score=plain), "use `async def`"),
    "description": (dict(Options=Loose), "size without a description"),
    "open": (dict(Options=Open), "must forbid unknown keys"),
}


def test_good_rewards_pass():
    check_reward(Letters)
    check_reward(with_(Letters, score=plain))
    drawn = giving(lambda b: Scores(row=torch.rand(len(b), generator=b.generator)))
    check_reward(with_(Letters, score=drawn))
    check_reward(with_(Letters, score=giving(lambda b: Scores(row=torch.full((len(b),), float("nan"))))))
    check_reward(with_(Letters, score=REWARDS["group"][0]["score"]), compares_rows=True)


@pytest.mark.parametrize("case", REWARDS)
def test_a_bad_reward_is_told(case):
    changes, message = REWARDS[case]
    with pytest.raises(ConformanceError, match=message):
        check_reward(with_(Letters, **changes))


def test_a_numpy_stream_counts_too():
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ConformanceError, match="numpy's global"):
        check_reward(with_(Letters, score=giving(lambda b: Scores(row=lengths(b) * numpy.random.rand()))))
