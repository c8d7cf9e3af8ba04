"""Every rule of the conformance checks is broken once on purpose, and the check says which."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ConfigDict, Field

from rlhf_peft import maths
from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.errors import PluginError
from rlhf_peft.plugin import (
    Options,
    PolicyGradient,
    PolicyOptions,
    Rollout,
    SamplingParams,
    Scores,
    Selection,
    hookimpl,
)
from rlhf_peft.testing import (
    ConformanceError,
    FakePolicy,
    check_algorithm,
    check_dataset,
    check_plugin,
    check_reward,
    check_sampler,
    make_requests,
    make_reward_batch,
    make_rollout,
)
from rlhf_peft.testing.rules import require_plain


class Nothing(Options):
    """No options."""


def with_(base, **changes):
    """A factory that differs from a good one in something."""
    return type("Bad", (base,), changes)


# --- rewards ---


class Letters:
    Options = Nothing
    roles, timeout = (), None

    def __init__(self, options):
        self.options = options

    async def score(self, batch):
        return Scores(row=torch.tensor([float(len(text)) for text in batch.texts]))


def giving(make):
    async def score(self, batch):
        return make(batch)

    return score


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


# --- samplers ---


def editing(edit):
    def sample(self, requests, context=None):
        return edit(CachedSampler.sample(self, requests, context)) or None

    return sample


def changed(**changes):
    return editing(lambda rollout: replace(rollout, **{k: v(rollout) for k, v in changes.items()}))


def unseeded(self, requests, context=None):
    return CachedSampler.sample(self, [replace(r, seed=1) for r in requests], context)


def mixed(self, requests, context=None):
    total = sum(r.seed for r in requests)
    return CachedSampler.sample(self, [replace(r, seed=r.seed + total) for r in requests], context)


def warm(self, requests, context=None):
    return CachedSampler.sample(
        self,
        [replace(r, params=replace(r.params, temperature=r.params.temperature or 1.0)) for r in requests],
        context,
    )


def moving(self, requests, context=None):
    with self._view.decoder() as model:
        next(model.parameters()).mul_(1.01)
    return CachedSampler.sample(self, requests, context)


def global_draw(self, requests, context=None):
    torch.rand(1)
    return CachedSampler.sample(self, requests, context)


def magic(self, policy, version):
    CachedSampler.sync(self, policy, version)
    self.provides = frozenset({"magic"})


SAMPLERS = {
    "rows": (dict(sample=editing(lambda r: r.rows([0, 1]))), "gave 2 rows for 6"),
    "order": (dict(sample=editing(lambda r: r.rows([5, 4, 3, 2, 1, 0]))), "groups are not the requests'"),
    "prompt": (
        dict(sample=changed(input_ids=lambda r: [i.flip(0) for i in r.input_ids])),
        "begin with its prompt",
    ),
    "mask": (
        dict(sample=changed(action_mask=lambda r: [m | True for m in r.action_mask])),
        "counts tokens of the prompt",
    ),
    "finish": (dict(sample=changed(finish=lambda r: ["eos"] * len(r))), "finish is 'eos' and the last token"),
    "version": (dict(sample=changed(version=lambda r: 7)), "version is 7"),
    "columns": (dict(sample=changed(columns=lambda r: {})), "column prompt"),
    "logps": (dict(sample=changed(sampler_logps=lambda r: None)), "sampler_logps is None"),
    "other logps": (
        dict(sample=changed(sampler_logps=lambda r: [x * 1.1 for x in r.sampler_logps])),
        "differ from the policy's",
    ),
    "seeds": (dict(sample=unseeded), "other seeds gave the very same"),
    "batch": (dict(sample=mixed), "differ when they are sampled alone"),
    "greedy": (dict(sample=warm), "not the likeliest"),
    "weights": (dict(sample=moving), "changed the policy's weights"),
    "stream": (dict(sample=global_draw), "torch's global random"),
    "provides": (dict(sync=magic), "provides has magic"),
    "params": (dict(sync=lambda self, policy, version: setattr(self, "params", None)), "is a SamplingParams"),
}


@pytest.mark.parametrize("case", SAMPLERS)
def test_a_bad_sampler_is_told(case):
    changes, message = SAMPLERS[case]
    with pytest.raises(ConformanceError, match=message):
        check_sampler(with_(CachedSampler, **changes))


# --- algorithms ---


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


# --- datasets, plugins, doubles ---


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([1], "row 0 is a int"),
        ([{"question": "x"}], "TRL's formats"),
        ([{"prompt": "x"}, {"prompt": "x", "label": 1}], "other columns than row 0"),
    ],
)
def test_a_bad_dataset_is_told(rows, message):
    class Rows:
        Options = Nothing

        def __init__(self, options):
            pass

        def rows(self):
            return rows

    with pytest.raises(ConformanceError, match=message):
        check_dataset(Rows)


def test_a_dataset_that_changes_is_told():
    class Rows:
        Options = Nothing

        def __init__(self, options):
            self.count = 0

        def rows(self):
            self.count += 1
            return [{"prompt": str(self.count)}]

    with pytest.raises(ConformanceError, match="other rows the second time"):
        check_dataset(Rows)


class Needy(Options):
    """One that has no default."""

    path: str = Field(description="A file.")


def module(**rewards):
    @hookimpl
    def rlhf_peft_register_rewards(register):
        for name, factory in rewards.items():
            register(name, factory)

    return SimpleNamespace(rlhf_peft_register_rewards=rlhf_peft_register_rewards)


def test_a_plugin_is_checked_whole():
    bad = with_(Letters, score=giving(lambda b: Scores(row=torch.zeros(3))))
    broken = with_(Letters, score=giving(lambda b: 1 / 0))
    found = check_plugin(module(fine=Letters, bad=bad, broken=broken, needy=with_(Letters, Options=Needy)))
    told = [str(finding) for finding in found]
    assert told[0] == "ok      reward fine"
    assert told[1].startswith("FAILED  reward bad: reward Bad gave scores (3,) for 4")
    assert told[2] == "FAILED  reward broken: raised ZeroDivisionError: division by zero"
    assert told[3] == "skipped reward needy: its options need a value: path"
    with pytest.raises(PluginError, match="the name learned is taken"):
        check_plugin(module(learned=Letters))


def test_the_fake_policy_is_a_policy(tmp_path):
    import warnings

    policy, same_again, other = FakePolicy(), FakePolicy(), FakePolicy(seed=1)
    ids = torch.tensor([5, 6, 7, 8])
    assert torch.equal(policy.logps(ids), same_again.logps(ids))
    assert not torch.equal(policy.logps(ids), other.logps(ids))
    assert policy.decode([0, 2, 3, 1]) == "ab"
    policy.save_adapter(tmp_path / "a")
    from peft import PeftConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert PeftConfig.from_pretrained(tmp_path / "a").r == 2


def test_the_doubles_have_the_shapes_that_the_types_promise():
    asked = make_requests(7, per_group=3, params=SamplingParams(5))
    rollout = make_rollout(asked, empty=True)
    assert isinstance(rollout, Rollout) and rollout.group.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert int(rollout.completion_lengths.max()) <= 5 and rollout.completion_ids(6) == [1]
    assert rollout.finish[6] == "eos" and len(set(r.seed for r in asked)) == 7
    batch = make_reward_batch(["a", "bc"], columns={"x": [1, 2]}, conversational=True)
    assert batch.texts == ["a", "bc"] and batch.columns["x"] == [1, 2]
    assert batch.prompts[0][0]["role"] == "user" and len(batch) == 2
    width = int(batch.rollout.lengths.max())
    assert batch.logps["base"].shape == (2, width) and batch.heads["reward-1"].shape == (2,)
