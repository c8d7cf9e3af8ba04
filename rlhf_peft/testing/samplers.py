"""The rules of samplers."""

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

    One row a request, in order, its prompt intact; lengths within what was asked and the context; the same for the same
    seeds, other for others; nothing drawn from global streams; the policy's weights left alone. What `provides` says
    holds: a row depends on its seed alone ("row_seeds"), its log-probabilities are the policy's ("logps" with
    "on_policy", at the temperature asked for), temperature 0 takes the likeliest token ("on_policy").

    Args:
        factory: what is registered.
        options: as a recipe gives them.
        policy: default: a `FakePolicy`.
        prepare: called with each sampler before it is used, to give it what a registry would.

    Raises:
        ConformanceError: a rule is broken.
    """
    _Check(factory, options, policy or FakePolicy(), prepare).all()


class _Check:
    """One sampler's check; makes fresh ones as it needs them."""

    def __init__(self, factory: Any, options: Any, policy: FakePolicy, prepare: Wrap | None) -> None:
        self.factory, self.options, self.policy, self.prepare = factory, options, policy, prepare
        self.who = f"sampler {getattr(factory, '__name__', '')}".rstrip()

    def all(self) -> None:
        sampler = self.fresh()
        self.attributes(sampler)
        provides = sampler.provides
        asked = make_requests(params=replace(sampler.params, max_new_tokens=8, temperature=1.0))
        rollout = self.sample(asked)
        self.shape(asked, rollout)
        self.seeds(asked, rollout)
        if "row_seeds" in provides:
            self.alone(asked, rollout)
        if "logps" in provides:
            self.logps(asked, rollout, exact="on_policy" in provides)
        if "on_policy" in provides:
            self.greedy(asked)
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

    def shape(self, asked: Sequence[Request], rollout: Rollout) -> None:
        n, who = len(asked), self.who
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
            rollout.group.tolist() == [r.group for r in asked],
            f"{who}: the groups are not the requests', in their order.",
        )
        require(
            rollout.tag == [r.tag for r in asked], f"{who}: the tags are not the requests', in their order."
        )
        require(rollout.version == 1, f"{who}: version is {rollout.version}; sync announced 1.")
        for name in asked[0].columns:
            want = [r.columns.get(name) for r in asked]
            require(
                rollout.columns.get(name) == want,
                f"{who}: column {name} is not the requests', in their order.",
            )
        for i, request in enumerate(asked):
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

    def seeds(self, asked: Sequence[Request], rollout: Rollout) -> None:
        again = self.sample(asked)
        require(
            _ids(again) == _ids(rollout),
            f"{self.who}: the same requests gave other completions the second time.",
        )
        others = [replace(r, seed=r.seed + 7) for r in asked]
        require(
            _ids(self.sample(others)) != _ids(rollout),
            f"{self.who}: other seeds gave the very same completions.",
        )

    def alone(self, asked: Sequence[Request], rollout: Rollout) -> None:
        singly = [_ids(self.sample([request]))[0] for request in asked]
        require(
            singly == _ids(rollout),
            f"{self.who} provides row_seeds, but rows differ when they are sampled alone.",
        )
        backwards = _ids(self.sample(list(asked)[::-1]))[::-1]
        require(
            backwards == _ids(rollout),
            f"{self.who} provides row_seeds, but the order of the requests matters.",
        )

    def logps(self, asked: Sequence[Request], rollout: Rollout, *, exact: bool) -> None:
        if rollout.sampler_logps is None:
            raise ConformanceError(f"{self.who} provides logps, but sampler_logps is None.")
        for i, (ids, mask) in enumerate(zip(rollout.input_ids, rollout.action_mask, strict=True)):
            found = rollout.sampler_logps[i]
            require(
                found.shape == ids.shape, f"{self.who}: row {i} has {len(found)} logps for {len(ids)} tokens."
            )
            require(
                not found[~mask].any(),
                f"{self.who}: row {i} has log-probabilities where nothing was written.",
            )
            sound = found.isfinite().all() and (found <= 1e-6).all()
            require(sound, f"{self.who}: row {i} has a log-probability above 0 or not finite.")
            params = asked[i].params
            if exact and not params.truncated:
                true = torch.where(mask, self.policy.logps(ids, params.temperature or 1.0), 0.0)
                gap = float((true - found).abs().max())
                require(
                    gap < 1e-3,
                    f"{self.who}: row {i}'s log-probabilities differ from the policy's by {gap:.2g}.",
                )

    def greedy(self, asked: Sequence[Request]) -> None:
        cold = [replace(r, params=replace(r.params, temperature=0.0)) for r in asked]
        rollout = self.sample(cold)
        for i, (ids, mask) in enumerate(zip(rollout.input_ids, rollout.action_mask, strict=True)):
            with self.policy.decoder() as model:
                best = model(input_ids=ids.unsqueeze(0)).logits[0, :-1].argmax(-1)
            likeliest = torch.equal(best[mask[1:]], ids[1:][mask[1:]])
            require(likeliest, f"{self.who}: at temperature 0 row {i} has a token that is not the likeliest.")


def _ids(rollout: Rollout) -> list[list[int]]:
    return [ids.tolist() for ids in rollout.input_ids]
