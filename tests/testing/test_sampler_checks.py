"""Every rule of samplers is broken once on purpose, and the check says which."""

from dataclasses import replace

import pytest
import torch

from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.testing import (
    ConformanceError,
    check_sampler,
)

from .support import with_


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
    with self._view.decoding() as model:
        next(model.lm.parameters()).mul_(1.01)
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
