"""Plans the memory that a recipe needs, per role and per phase.

Everything is planned for the longest rows: completions of full length after the longest prompt. `sizes` has the
arithmetic, and `rl_planner` the phases of an RL stage.
"""

from __future__ import annotations

from ..engine.fast import FastPaths
from ..recipe import PreferenceStage, Recipe, RewardModelStage, RlStage, SftStage, StageBase
from ..registry import Registry
from ..trl_bridge.rows import micro_batch
from . import sizes
from .gpus import Budget
from .plan import ALLOCATOR, EvaluationPrompts, Lengths, Phase, Plan
from .rl_planner import RlPlanner
from .shape import Shape

LIBRARIES = 940 * 1024**2
"""On the CPU: bytes that Python, torch and the other libraries take, and that loading a model leaves behind.

Measured on Linux with torch 2.13 and transformers 5.24: 0.85 GB after their import, 0.92 GB with a model beside its
weights.
"""
HOLES = 0.45
"""On the CPU: memory between activations that the C library's allocator cannot use, as a share of the activations.

Fitted to SFT, DPO, reward model, PPO and GRPO on SmolLM2-135M with rows of equal length, where it was 0.35 to 0.57.
"""


class Planner:
    """Plans the stages of a recipe one after the other; roles that a stage trains are there for later ones.

    Args:
        recipe: that is planned.
        shape: of its model.
        registry: makes algorithms, samplers and rewards.
        budget: the memory that there is.
        lengths: says how long the rows of a stage are.
        evaluated: says how many prompts an evaluation answers.

    Attributes:
        result: the plan so far.
        length: most tokens of a row.
        layers: that an adapter is put on.
        rank: of the adapters.
        trained_policy: whether an earlier stage has trained the policy.
    """

    def __init__(
        self,
        recipe: Recipe,
        shape: Shape,
        registry: Registry,
        budget: Budget,
        lengths: Lengths,
        evaluated: EvaluationPrompts,
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
        self.add_role("policy")

    def plan(self) -> Plan:
        """Plan all stages, in order.

        Raises:
            PluginError: an algorithm, sampler or reward cannot be made.
        """
        for stage in self.recipe.stages:
            if isinstance(stage, RlStage):
                RlPlanner(self, stage).plan()
                self.trained_policy = True
            elif isinstance(stage, RewardModelStage):
                self._reward_model(stage)
            elif isinstance(stage, SftStage | PreferenceStage):
                self._trl(stage)
        return self.result

    # --- roles ---

    def add_role(self, name: str, *, head: bool = False, adapter: bool = True) -> None:
        """Add a role, or replace it, with its own adapter and a head as the arguments say."""
        values = sizes.lora_values(self.layers, self.rank) if adapter else 0
        size = {"adapter": 4 * values} if adapter else {}
        self.result.roles[name] = {**size, **({"head": 4 * (self.shape.hidden + 1)} if head else {})}

    def static(self) -> dict[str, int]:
        """Bytes, by name, of what is in memory in every phase: weights, adapters and heads; libraries on a CPU."""
        roles = {name: sum(size.values()) for name, size in self.result.roles.items() if name != "base"}
        items = {
            "weights": self.result.roles["base"]["weights"],
            "adapters and heads": sum(roles.values()),
        }
        if self.shape.device == "cpu":
            items |= {"libraries": LIBRARIES}
        return items

    def training(self, roles: dict[str, tuple[bool, bool]], optimizer: str) -> tuple[int, int]:
        """Bytes of the gradients and of the optimizer state of trained roles.

        Args:
            roles: name to (whether it has its own adapter, whether it has a head).
            optimizer: its name in the recipe.
        """
        gradients = state = 0
        for adapter, head in roles.values():
            layers, width = self.layers if adapter else [], self.shape.hidden if head else 0
            gradients += 4 * (sizes.lora_values(layers, self.rank) + width)
            state += sizes.optimizer_bytes(layers, self.rank, width, optimizer)
        return gradients, state

    def add_phase(self, stage: StageBase, name: str, items: dict[str, int]) -> None:
        """Add a phase that needs these items, in bytes, beside the static ones, and what a GPU's allocator holds."""
        total = {**self.static(), **items}
        if self.shape.device == "cuda":
            blocks = sum(total.values()) - total["weights"]
            total[ALLOCATOR] = sizes.reserved_beyond(blocks)
        self.result.phases.append(Phase(stage.name, name, {k: v for k, v in total.items() if v}))

    def longest(self, stage: StageBase, limit: int) -> int:
        """Tokens of the longest prompt or row of a stage; where that is known from goes into the plan's notes."""
        tokens, note = self.lengths(stage, limit)
        self.result.notes.append(note)
        self.result.lengths[stage.name] = tokens
        return tokens

    # --- stages ---

    def _trl(self, stage: SftStage | PreferenceStage) -> None:
        """Plan SFT, DPO and KTO, which TRL's trainers run."""
        if isinstance(stage, PreferenceStage) and (self.trained_policy or "policy" in stage.init):
            self.add_role("reference")
        budget = self.recipe.model.tokens_per_forward
        packed = isinstance(stage, SftStage) and stage.packing
        row = min(self.length, budget) if packed else self.longest(stage, self.length)
        self.result.lengths[stage.name] = row
        pair = isinstance(stage, PreferenceStage) and stage.method == "dpo"
        least = 2 if isinstance(stage, PreferenceStage) and stage.method == "kto" else 1
        tokens = row * (2 if pair else 1)
        rows = micro_batch(stage.batch_size, tokens, budget, at_least=least)
        self.result.forward_rows[stage.name] = rows
        tokens *= rows
        gradients, state = self.training({"policy": (True, False)}, stage.optimizer)
        activations = self.activations(tokens, tokens)
        widest = max(activations.pop("one layer"), sizes.tile_bytes(self.shape, tokens))
        self.add_phase(
            stage,
            "update",
            {"gradients": gradients, "optimizer": state, **activations, "one layer or logits": widest},
        )
        self.trained_policy = True
        self.result.roles.pop("reference", None)

    def _reward_model(self, stage: RewardModelStage) -> None:
        for number in range(stage.ensemble):
            self.add_role(f"reward-{number}", head=True)
        row = 2 * self.longest(stage, self.length)
        rows = max(1, min(stage.batch_size, self.recipe.model.tokens_per_forward // row))
        self.result.forward_rows[stage.name] = rows
        tokens = row * rows
        gradients, state = self.training({"reward": (True, True)}, stage.optimizer)
        self.add_phase(
            stage,
            "update",
            {"gradients": gradients, "optimizer": state, **self.activations(tokens, tokens)},
        )

    def activations(self, tokens: int, keys: int, trunks: int = 1, *, rl: bool = False) -> dict[str, int]:
        """Bytes, by name, of what a forward keeps for the backward pass.

        Args:
            tokens: that go through the model at once.
            keys: that they attend to, over all rows.
            trunks: adapters whose activations are kept at the same time.
            rl: an RL stage, in which there is no dropout.
        """
        checkpointing = self.recipe.model.gradient_checkpointing
        fast = FastPaths(self.recipe.model.fast)
        fuses_lora = fast.allows("fused_lora") and (rl or self.recipe.lora.dropout == 0)
        saved = sizes.saved_bytes(
            self.shape,
            tokens,
            keys,
            checkpointing=checkpointing,
            trunks=trunks,
            fused=fuses_lora and fast.allows("gated_mlp") and self._adapts_mlps(),
            plain_lora=not fuses_lora,
            fused_norm=self.shape.device == "cuda" and fast.allows("fused_norm"),
        )
        holes = int(HOLES * saved) if self.shape.device == "cpu" else 0
        return {
            "activations": saved,
            "between activations": holes,
            "one layer": sizes.layer_transient(self.shape, tokens),
        }

    def _adapts_mlps(self) -> bool:
        """Whether MLPs are gated, with an adapter on each of their layers, so that they can run as one step."""
        wide = {self.shape.hidden, self.shape.inner}
        on = [layer for layer in self.layers if {layer.inputs, layer.outputs} == wide]
        return self.shape.gated and len(on) >= 3 * self.shape.layers
