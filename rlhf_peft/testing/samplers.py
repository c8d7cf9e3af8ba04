"""Checks that samplers keep the rules of the plugin interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..types import Request, Rollout, SamplingParams
from .doubles import FakePolicy, FakeSampleContext, make_requests
from .rules import ConformanceError, global_streams_untouched, make, require, same

PROVIDES = frozenset({"logps", "row_seeds", "on_policy", "multi_turn"})
Wrap = Callable[[Any], Any]


def check_sampler(
    factory: Any,
    options: Mapping[str, Any] | None = None,
    policy: FakePolicy | None = None,
    *,
    prepare: Wrap | None = None,
) -> None:
    """Check that a sampler keeps the rules.

    It returns one row for each request, in order, with the prompt unchanged, and no longer than the request and the
    context allow. The same seeds give the same rows, and other seeds give others. Nothing is drawn from global random
    streams, and the policy's weights are unchanged. What `provides` names is true: a row depends on its seed alone
    ("row_seeds"), log-probabilities are the policy's at the request's temperature ("logps" with "on_policy"), and
    temperature 0 takes the likeliest token ("on_policy").

    Args:
        factory: what is registered.
        options: as a recipe gives them.
        policy: default: a `FakePolicy`.
        prepare: called with each sampler before it is used, to set what a registry would set.

    Raises:
        ConformanceError: a rule is broken.
    """
    _Check(factory, options, policy or FakePolicy(), prepare).all()


class _Check:
    """The check of one sampler; each method checks one rule, with a fresh sampler where it needs one."""

    def __init__(self, factory: Any, options: Any, policy: FakePolicy, prepare: Wrap | None) -> None:
        self.factory, self.options, self.policy, self.prepare = factory, options, policy, prepare
        self.who = f"sampler {getattr(factory, '__name__', '')}".rstrip()

    def all(self) -> None:
        sampler = self.fresh()
        self.attributes(sampler)
        provides = sampler.provides
        requests = make_requests(params=replace(sampler.params, max_new_tokens=8, temperature=1.0))
        rollout = self.sample(requests)
        self.shape(requests, rollout)
        self.seeds(requests, rollout)
        if "row_seeds" in provides:
            self.alone(requests, rollout)
        if "logps" in provides:
            self.logps(requests, rollout, exact="on_policy" in provides)
        if "on_policy" in provides:
            self.greedy(requests)
        sampler.close()
        sampler.close()

    def fresh(self) -> Any:
        sampler = make(self.factory, self.options)
        if self.prepare is not None:
            self.prepare(sampler)
        sampler.sync(self.policy, 1)
        return sampler

    def sample(self, requests: Sequence[Request]) -> Rollout:
        sampler, before = self.fresh(), self.policy.weights()
        with global_streams_untouched(self.who):
            rollout = sampler.sample(requests, FakeSampleContext())
        require(
            isinstance(rollout, Rollout),
            f"{self.who}.sample gives a Rollout, found {type(rollout).__name__}.",
        )
        require(same(before, self.policy.weights()), f"{self.who} changed the policy's weights.")
        sampler.close()
        return rollout

    def attributes(self, sampler: Any) -> None:
        provides = sampler.provides
        require(
            isinstance(provides, frozenset),
            f"{self.who}.provides is a frozenset, found {type(provides).__name__}.",
        )
        unknown = sorted(provides - PROVIDES)
        require(
            not unknown,
            f"{self.who}.provides has {', '.join(unknown)}; known: {', '.join(sorted(PROVIDES))}.",
        )
        require(isinstance(sampler.params, SamplingParams), f"{self.who}.params is a SamplingParams.")

    def shape(self, requests: Sequence[Request], rollout: Rollout) -> None:
        n, who = len(requests), self.who
        require(len(rollout) == n, f"{who} gave {len(rollout)} rows for {n} requests.")
        lists: dict[str, Any] = {
            "action_mask": rollout.action_mask,
            "finish": rollout.finish,
            "tag": rollout.tag,
            "group": rollout.group,
        }
        for name, values in lists.items():
            require(len(values) == n, f"{who}: {name} has {len(values)} entries for {n} rows.")
        require(
            rollout.group.tolist() == [r.group for r in requests],
            f"{who}: the groups are not the requests', in their order.",
        )
        require(
            rollout.tag == [r.tag for r in requests],
            f"{who}: the tags are not the requests', in their order.",
        )
        require(rollout.version == 1, f"{who}: version is {rollout.version}; sync announced 1.")
        for name in requests[0].columns:
            expected = [r.columns.get(name) for r in requests]
            require(
                rollout.columns.get(name) == expected,
                f"{who}: column {name} is not the requests', in their order.",
            )
        for i, request in enumerate(requests):
            self.row(i, request, rollout)

    def row(self, i: int, request: Request, rollout: Rollout) -> None:
        who, ids, mask = f"{self.who}: row {i}", rollout.input_ids[i], rollout.action_mask[i]
        p = len(request.prompt_ids)
        require(
            ids.dtype == torch.int64 and mask.dtype == torch.bool, f"{who}: ids are int64 and the mask bool."
        )
        require(ids.shape == mask.shape, f"{who}: {len(ids)} ids and {len(mask)} places in the mask.")
        require(torch.equal(ids[:p], request.prompt_ids), f"{who} does not begin with its prompt.")
        require(not mask[:p].any(), f"{who}: the mask counts tokens of the prompt as written.")
        written = int(mask.sum())
        most = min(request.params.max_new_tokens, self.policy.max_length - p)
        require(1 <= written <= most, f"{who} has {written} new tokens, expected 1 to {most}.")
        require(len(ids) <= self.policy.max_length, f"{who} is longer than the context.")
        word, last = rollout.finish[i], int(ids[mask][-1])
        require(word in ("eos", "stop", "length"), f"{who}: finish is {word!r}; eos, stop or length.")
        require(
            (word == "eos") == (last in self.policy.eos_ids),
            f"{who}: finish is {word!r} and the last token {last}.",
        )

    def seeds(self, requests: Sequence[Request], rollout: Rollout) -> None:
        again = self.sample(requests)
        require(
            _ids(again) == _ids(rollout),
            f"{self.who}: the same requests gave other completions the second time.",
        )
        others = [replace(r, seed=r.seed + 7) for r in requests]
        require(
            _ids(self.sample(others)) != _ids(rollout),
            f"{self.who}: other seeds gave the very same completions.",
        )

    def alone(self, requests: Sequence[Request], rollout: Rollout) -> None:
        singly = [_ids(self.sample([request]))[0] for request in requests]
        require(
            singly == _ids(rollout),
            f"{self.who} provides row_seeds, but rows differ when they are sampled alone.",
        )
        backwards = _ids(self.sample(list(requests)[::-1]))[::-1]
        require(
            backwards == _ids(rollout),
            f"{self.who} provides row_seeds, but the order of the requests matters.",
        )

    def logps(self, requests: Sequence[Request], rollout: Rollout, *, exact: bool) -> None:
        if rollout.sampler_logps is None:
            raise ConformanceError(f"{self.who} provides logps, but sampler_logps is None.")
        for i, (ids, mask) in enumerate(zip(rollout.input_ids, rollout.action_mask, strict=True)):
            logps = rollout.sampler_logps[i]
            require(
                logps.shape == ids.shape, f"{self.who}: row {i} has {len(logps)} logps for {len(ids)} tokens."
            )
            require(
                not logps[~mask].any(),
                f"{self.who}: row {i} has log-probabilities where nothing was written.",
            )
            sound = logps.isfinite().all() and (logps <= 1e-6).all()
            require(sound, f"{self.who}: row {i} has a log-probability above 0 or not finite.")
            params = requests[i].params
            if exact and not params.truncated:
                true = torch.where(mask, self.policy.logps(ids, params.temperature or 1.0), 0.0)
                gap = float((true - logps).abs().max())
                require(
                    gap < 1e-3,
                    f"{self.who}: row {i}'s log-probabilities differ from the policy's by {gap:.2g}.",
                )

    def greedy(self, requests: Sequence[Request]) -> None:
        cold = [replace(r, params=replace(r.params, temperature=0.0)) for r in requests]
        rollout = self.sample(cold)
        for i, (ids, mask) in enumerate(zip(rollout.input_ids, rollout.action_mask, strict=True)):
            with self.policy.decoding() as decoding:
                best = decoding.lm(input_ids=ids.unsqueeze(0)).logits[0, :-1].argmax(-1)
            likeliest = torch.equal(best[mask[1:]], ids[1:][mask[1:]])
            require(likeliest, f"{self.who}: at temperature 0 row {i} has a token that is not the likeliest.")


def _ids(rollout: Rollout) -> list[list[int]]:
    return [ids.tolist() for ids in rollout.input_ids]
