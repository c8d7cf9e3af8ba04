"""The memory that a recipe needs, per role and per phase.

Everything is for the longest rows: completions of full length after the longest prompt. `sizes` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..engine.fast.dense_weights import HEADROOM
from ..hookspecs import Algorithm, Sampler
from ..recipe import PreferenceStage, Recipe, RewardModelStage, RlStage, SftStage, StageBase
from ..registry import Registry
from ..stages.rl.parts import needs_old_logps
from ..trl_bridge.rows import micro_batch
from ..types import MemoryNeeds
from . import sizes
from .gpus import Budget
from .shape import Shape

LIBRARIES = 940 * 1024**2
"""On the CPU: what Python, torch and the other libraries take of the process, and what loading a model leaves behind.

Measured on Linux with torch 2.13 and transformers 5.24: 0.85 GB after their import, 0.92 GB with a model beside its
weights.
"""
HOLES = 0.45
"""On the CPU: memory between activations that the C library's allocator cannot give to others, a byte of them.

Fitted to SFT, DPO, reward model, PPO and GRPO on SmolLM2-135M with rows of equal length, where it was 0.35 to 0.57.
"""


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a stage: what is in memory in it, by name, in bytes."""

    stage: str
    name: str
    items: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.items.values())


@dataclass(slots=True)
class Plan:
    """What a recipe needs.

    Attributes:
        roles: "base" and each role to what it takes, by name, in bytes.
        phases: in order.
        budget: what there is.
        notes: what was assumed.
    """

    parameters: int
    roles: dict[str, dict[str, int]]
    phases: list[Phase]
    budget: Budget
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def verdict(self) -> str:
        """fits, tight (less than a tenth is left), or does not fit."""
        if self.peak.total > self.budget.usable:
            return "does not fit"
        return "tight" if self.peak.total > 0.9 * self.budget.usable else "fits"


Lengths = Callable[[StageBase, int], tuple[int, str]]
"""(stage, most tokens) to the longest prompt or row, and where that is known from."""


Evaluated = Callable[[RlStage], int]
"""How many held-out prompts an evaluation of the stage answers."""


def make_plan(
    recipe: Recipe,
    shape: Shape,
    registry: Registry,
    budget: Budget,
    lengths: Lengths,
    evaluated: Evaluated,
) -> Plan:
    """Plan all stages of a recipe.

    Raises:
        PluginError: an algorithm, sampler or reward cannot be made.
    """
    return _Planner(recipe, shape, registry, budget, lengths, evaluated).plan()


class _Planner:
    def __init__(
        self,
        recipe: Recipe,
        shape: Shape,
        registry: Registry,
        budget: Budget,
        lengths: Lengths,
        evaluated: Evaluated,
    ) -> None:
        self.recipe, self.shape, self.registry = recipe, shape, registry
        self.lengths, self.evaluated = lengths, evaluated
        model = recipe.model
        self.length = min(model.max_length or shape.positions, shape.positions)
        weights = sizes.weight_bytes(shape)
        self.result = Plan(shape.parameters, {"base": {"weights": weights}}, [], budget)
        self.layers = shape.targets(recipe.lora.target_modules)
        self.rank = recipe.lora.r
        self.trained_policy = False
        self._role("policy")

    def plan(self) -> Plan:
        for stage in self.recipe.stages:
            if isinstance(stage, RlStage):
                self._rl(stage)
            elif isinstance(stage, RewardModelStage):
                self._reward_model(stage)
            elif isinstance(stage, SftStage | PreferenceStage):
                self._trl(stage)
        return self.result

    # --- roles ---

    def _role(self, name: str, *, head: bool = False, adapter: bool = True) -> None:
        values = sizes.lora_values(self.layers, self.rank) if adapter else 0
        took = {"adapter": 4 * values} if adapter else {}
        self.result.roles[name] = {**took, **({"head": 4 * (self.shape.hidden + 1)} if head else {})}

    def _static(self) -> dict[str, int]:
        """Weights, adapters and heads that are there."""
        roles = {name: sum(took.values()) for name, took in self.result.roles.items() if name != "base"}
        found = {
            "weights": self.result.roles["base"]["weights"],
            "adapters and heads": sum(roles.values()),
        }
        if self.shape.device == "cpu":
            found |= {"libraries": LIBRARIES}
        return found

    def _training(self, roles: dict[str, tuple[bool, bool]], optimizer: str) -> tuple[int, int]:
        """Gradients and optimizer state of roles, each (has an adapter of its own, has a head)."""
        gradients = state = 0
        for adapter, head in roles.values():
            layers, width = self.layers if adapter else [], self.shape.hidden if head else 0
            gradients += 4 * (sizes.lora_values(layers, self.rank) + width)
            state += sizes.optimizer_bytes(layers, self.rank, width, optimizer)
        return gradients, state

    def _phase(self, stage: StageBase, name: str, items: dict[str, int]) -> None:
        took = {**self._static(), **items}
        self.result.phases.append(Phase(stage.name, name, {k: v for k, v in took.items() if v}))

    def _longest(self, stage: StageBase, limit: int) -> int:
        found, told = self.lengths(stage, limit)
        self.result.notes.append(told)
        return found

    # --- stages ---

    def _trl(self, stage: SftStage | PreferenceStage) -> None:
        """SFT, DPO and KTO, by TRL's trainers."""
        if isinstance(stage, PreferenceStage) and (self.trained_policy or "policy" in stage.init):
            self._role("reference")
        budget = self.recipe.model.tokens_per_forward
        packed = isinstance(stage, SftStage) and stage.packing
        row = min(self.length, budget) if packed else self._longest(stage, self.length)
        pair = isinstance(stage, PreferenceStage) and stage.method == "dpo"
        least = 2 if isinstance(stage, PreferenceStage) and stage.method == "kto" else 1
        tokens = row * (2 if pair else 1)
        tokens *= micro_batch(stage.batch_size, tokens, budget, at_least=least)
        gradients, state = self._training({"policy": (True, False)}, stage.optimizer)
        activations = self._activations(tokens, tokens)
        widest = max(activations.pop("one layer"), sizes.tile_bytes(self.shape, tokens))
        self._phase(
            stage,
            "update",
            {"gradients": gradients, "optimizer": state, **activations, "one layer or logits": widest},
        )
        self.trained_policy = True
        self.result.roles.pop("reference", None)

    def _reward_model(self, stage: RewardModelStage) -> None:
        for number in range(stage.ensemble):
            self._role(f"reward-{number}", head=True)
        row = 2 * self._longest(stage, self.length)
        tokens = row * max(1, min(stage.batch_size, self.recipe.model.tokens_per_forward // row))
        gradients, state = self._training({"reward": (True, True)}, stage.optimizer)
        self._phase(
            stage,
            "update",
            {"gradients": gradients, "optimizer": state, **self._activations(tokens, tokens)},
        )

    def _activations(self, tokens: int, keys: int, trunks: int = 1) -> dict[str, int]:
        checkpointing = self.recipe.model.gradient_checkpointing
        fused = self._fuses_mlps()
        saved = trunks * sizes.saved_bytes(self.shape, tokens, keys, checkpointing=checkpointing, fused=fused)
        holes = int(HOLES * saved) if self.shape.device == "cpu" else 0
        return {
            "activations": saved,
            "between activations": holes,
            "one layer": sizes.layer_transient(self.shape, tokens),
        }

    def _fuses_mlps(self) -> bool:
        """Whether gated MLPs go in one step: in float32, with an adapter on each of their layers."""
        wide = {self.shape.hidden, self.shape.inner}
        on = [layer for layer in self.layers if {layer.inputs, layer.outputs} == wide]
        full = len(on) >= 3 * self.shape.layers
        return self.shape.gated and self.shape.itemsize == 4 and full and self.recipe.lora.dropout == 0

    def _rl(self, stage: RlStage) -> None:
        algorithm: Algorithm = self.registry.make("algorithms", stage.algorithm.name, stage.algorithm.options)
        sampler: Sampler = self.registry.make("samplers", stage.sampler.name, stage.sampler.options)
        needs = self.registry.memory("samplers", stage.sampler.name, stage.sampler.options)
        heads = self._rl_roles(stage, algorithm)
        new = sampler.params.max_new_tokens
        prompt = max(1, self._longest(stage, max(1, self.length - new)))
        trained = {"policy": (True, False)}
        if algorithm.value is not None:
            trained["value"] = (algorithm.value == "own", True)
        gradients, state = self._training(trained, stage.optimizer)
        others = {"optimizer": state, **self._models(stage)}
        group = self.registry.memory(
            "algorithms", stage.algorithm.name, stage.algorithm.options
        ).rows_per_prompt
        rows = stage.prompts_per_step * group
        kept = 0
        if algorithm.value == "reward" and self.shape.device == "cpu":
            kept = rows * (prompt + new) * self.shape.hidden * self.shape.itemsize
        # A sampler that keeps the best of n writes n for each.
        drawn = needs.rows_per_prompt
        most = rows * drawn if needs.rows_at_once is None else needs.rows_at_once
        self._rollout(stage, "rollout", min(most, rows * drawn), group * drawn, prompt, new, needs, others)
        prompts = self.evaluated(stage)
        if (asked := min(most, prompts * drawn)) > rows * drawn:
            self.result.notes.append(f"{stage.name}: evaluation is planned for {prompts} prompts")
            self._rollout(stage, "evaluation", asked, drawn, prompt, new, needs, others)
        self._scoring(stage, algorithm, heads, group, prompt, new, {**others, "value states": kept})
        self._update(
            stage, algorithm, group, prompt, new, {**others, "gradients": gradients, "value states": kept}
        )
        self.trained_policy = True

    def _rl_roles(self, stage: RlStage, algorithm: Algorithm) -> int:
        """The roles that the stage adds; returns how many reward heads are run."""
        copies = self.trained_policy or "policy" in stage.init
        self.result.roles["reference"] = {}
        if copies:
            self._role("reference")
        wanted = any(
            "reward" in getattr(self.registry.entry("rewards", entry.name).factory, "roles", ())
            for entry in stage.rewards
        )
        heads = [role for role in self.result.roles if role.startswith("reward-")]
        if wanted and not heads:
            self._role("reward-0", head=True)
            heads = ["reward-0"]
        if algorithm.value is not None:
            self._role("value", head=True, adapter=algorithm.value == "own")
        return len(heads) if wanted else 0

    def _models(self, stage: RlStage) -> dict[str, int]:
        """Models that rewards have of their own, on the same device."""
        needs = [self.registry.memory("rewards", entry.name, entry.options) for entry in stage.rewards]
        return {"models of rewards": sum(need.model_bytes for need in needs)}

    def _rollout(
        self,
        stage: RlStage,
        name: str,
        rows: int,
        group: int,
        prompt: int,
        new: int,
        needs: MemoryNeeds,
        others: dict[str, int],
    ) -> None:
        shape = self.shape
        prompts = -(-rows // group)
        dense = sizes.dense_bytes(shape) if any(layer.quantized for layer in shape.linear) else 0
        free = self.result.budget.usable - sum(self._static().values()) - others["optimizer"]
        merge = self.recipe.model.merge_rollouts
        merges = dense * HEADROOM < free if merge is None else merge
        lean = shape.lean and (merges or not dense) and needs.shares_prompts
        cached = prompts * prompt + rows * new if lean else rows * (prompt + new)
        items = {
            "cache": sizes.cache_bytes(shape, cached),
            "one layer": sizes.layer_transient(shape, prompts * prompt),
            "logits": sizes.draw_bytes(shape, rows),
            **others,
        }
        if merges:
            items["dense weights"] = dense
        self._phase(stage, name, items)

    def _tokens(self, budget: int, group: int, prompt: int, new: int, rows: int) -> tuple[int, int]:
        """Tokens that a forward computes and keys that they attend to; a prompt that rows share counts once."""
        most = max(1, min(rows, budget // (prompt + new)))
        # Whole groups, or a group in even parts, as `length_batches` deals them.
        count = most // group * group if most >= group else -(-group // -(-group // most))
        keys = count * (prompt + new)
        if group < 2 or count < 2 or not self.shape.shares or self.recipe.model.gradient_checkpointing:
            return keys, keys
        shared = -(-count // group) * prompt + count * new
        return (shared, keys) if shared < 0.8 * keys else (keys, keys)

    def _scoring(
        self,
        stage: RlStage,
        algorithm: Algorithm,
        heads: int,
        group: int,
        prompt: int,
        new: int,
        others: dict[str, int],
    ) -> None:
        frozen = heads + ("reference" in algorithm.roles) + (algorithm.value == "own")
        budget = self.recipe.model.tokens_per_forward
        tokens, _ = self._tokens(budget, group, prompt, new, stage.prompts_per_step * group)
        policy = needs_old_logps(algorithm)
        rows = tokens * max(1, frozen)
        chunk = sizes.logit_chunk_bytes(self.shape, tokens, entropy=policy)
        layer = sizes.layer_transient(self.shape, tokens)
        items = {
            "states": sizes.state_bytes(self.shape, rows, 2) + sizes.state_bytes(self.shape, tokens, 2),
            "one layer or logits": max(layer, chunk),
            **others,
        }
        self._phase(stage, "scoring", items)

    def _update(
        self,
        stage: RlStage,
        algorithm: Algorithm,
        group: int,
        prompt: int,
        new: int,
        others: dict[str, int],
    ) -> None:
        rows = -(-stage.prompts_per_step * group // algorithm.minibatches)
        budget = self.recipe.model.tokens_per_forward
        tokens, keys = self._tokens(budget, group, prompt, new, rows)
        trunks = 2 if algorithm.value == "own" else 1
        activations = self._activations(tokens, keys, trunks)
        entropy = "entropy" in algorithm.needs or not needs_old_logps(algorithm)
        logits = sizes.logit_chunk_bytes(self.shape, tokens, entropy=entropy)
        layer = activations.pop("one layer")
        mask = keys * new * self.shape.itemsize if tokens < keys else 0
        checkpointing = self.recipe.model.gradient_checkpointing
        items = {
            **activations,
            "attention masks": mask * trunks * (1 if checkpointing else self.shape.layers),
            "states": sizes.state_bytes(self.shape, keys, 3 * trunks),
            "one layer or logits": max(layer, logits),
            **others,
        }
        self._phase(stage, "update", items)
