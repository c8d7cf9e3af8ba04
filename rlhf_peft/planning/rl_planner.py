"""Plans the memory of an RL stage: its rollout, evaluation, scoring and update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.fast import FastPaths
from ..engine.fast.dense_weights import HEADROOM
from ..engine.fast.shared_prefix import WORTH
from ..engine.memory import room_for_states
from ..hookspecs import Algorithm, Sampler
from ..recipe import RlStage
from ..stages.rl.parts import needs_old_logps
from . import sizes

if TYPE_CHECKING:
    from .planner import Planner


class RlPlanner:
    """Plans one RL stage.

    Args:
        planner: of the recipe, which has planned the stages before.
        stage: the RL stage.

    Raises:
        PluginError: the algorithm, the sampler or a reward cannot be made.
    """

    def __init__(self, planner: Planner, stage: RlStage) -> None:
        self.planner, self.stage, self.shape = planner, stage, planner.shape
        registry, model = planner.registry, planner.recipe.model
        self.forward_tokens, self.checkpointing = model.tokens_per_forward, model.gradient_checkpointing
        chosen = stage.algorithm
        self.algorithm: Algorithm = registry.make("algorithms", chosen.name, chosen.options)
        sampler: Sampler = registry.make("samplers", stage.sampler.name, stage.sampler.options)
        self.sampler_needs = registry.memory("samplers", stage.sampler.name, stage.sampler.options)
        self.reward_heads = self._add_roles()
        self.completion = sampler.params.max_new_tokens
        self.prompt = max(1, planner.longest(stage, max(1, planner.length - self.completion)))
        self.group = registry.memory("algorithms", chosen.name, chosen.options).rows_per_prompt
        self.rows = stage.prompts_per_step * self.group

    def plan(self) -> None:
        """Add the stage's phases, in order."""
        stage, needs = self.stage, self.sampler_needs
        trained = {"policy": (True, False)}
        if self.algorithm.value is not None:
            trained["value"] = (self.algorithm.value == "own", True)
        gradients, state = self.planner.training(trained, stage.optimizer)
        others = {"optimizer": state, **self._reward_models()}
        value_states = 0
        if self.algorithm.value == "reward":
            tokens = self.rows * (self.prompt + self.completion)
            value_states = tokens * self.shape.hidden * self.shape.itemsize
            if self.shape.device == "cuda":  # Larger ones are kept on the CPU.
                value_states = min(value_states, room_for_states(self.planner.result.budget.total))
        # A sampler that keeps the best of n writes n for each.
        drawn = needs.rows_per_prompt
        most = self.rows * drawn if needs.rows_at_once is None else needs.rows_at_once
        self._rollout("rollout", min(most, self.rows * drawn), self.group * drawn, others)
        prompts = self.planner.evaluated(stage)
        if (evaluation_rows := min(most, prompts * drawn)) > self.rows * drawn:
            self.planner.result.notes.append(f"{stage.name}: evaluation is planned for {prompts} prompts")
            self.planner.result.evaluation_prompts[stage.name] = -(-evaluation_rows // drawn)
            self._rollout("evaluation", evaluation_rows, drawn, others)
        self._scoring({**others, "value states": value_states})
        self._update({**others, "gradients": gradients, "value states": value_states})

    def _add_roles(self) -> int:
        """Add the roles of the stage; returns how many reward heads are run."""
        stage, planner = self.stage, self.planner
        roles = planner.result.roles
        roles["reference"] = {}
        if planner.trained_policy or "policy" in stage.init:
            planner.add_role("reference")
        needs_head = any(
            "reward" in getattr(planner.registry.entry("rewards", entry.name).factory, "roles", ())
            for entry in stage.rewards
        )
        heads = [role for role in roles if role.startswith("reward-")]
        if needs_head and not heads:
            planner.add_role("reward-0", head=True)
            heads = ["reward-0"]
        if self.algorithm.value is not None:
            planner.add_role("value", head=True, adapter=self.algorithm.value == "own")
        return len(heads) if needs_head else 0

    def _reward_models(self) -> dict[str, int]:
        """Bytes of the models that rewards load themselves, on the same device."""
        registry = self.planner.registry
        needs = [registry.memory("rewards", entry.name, entry.options) for entry in self.stage.rewards]
        return {"models of rewards": sum(need.model_bytes for need in needs)}

    def _rollout(self, name: str, rows: int, group: int, others: dict[str, int]) -> None:
        """Add a phase in which completions are sampled.

        Args:
            name: of the phase.
            rows: completions that are sampled at once.
            group: completions of one prompt.
            others: bytes of what else is in memory, by name.
        """
        shape, planner, new = self.shape, self.planner, self.completion
        prompts = -(-rows // group)
        dense = sizes.dense_bytes(shape) if any(layer.quantized for layer in shape.linear) else 0
        free = planner.result.budget.usable - sum(planner.static().values()) - others["optimizer"]
        merge = planner.recipe.model.merge_rollouts
        # A card decodes from quantized weights by the lean step too; see `Decoding.as_role`.
        fast = FastPaths(planner.recipe.model.fast)
        allowed = shape.lean and fast.allows("lean_decoder")
        card_is_lean = allowed and planner.result.budget.device == "cuda"
        if merge is None:
            merge = fast.allows("dense_weights") and not card_is_lean and dense * HEADROOM < free
        lean = allowed and (merge or not dense or card_is_lean) and self.sampler_needs.shares_prompts
        cached = rows * (self.prompt + new)
        if lean:
            # The first time the lean step is compared with the plain one on two rows of each of two prompts, which have
            # copies of them.
            compared = 2 * min(prompts, 2) * (self.prompt + 1)
            cached = prompts * self.prompt + max(rows * new, compared)
        captured = lean and shape.device == "cuda" and fast.allows("cuda_graphs")
        items = {
            "adapter in 16 bits": self._decoded_adapter() if lean and dense and not merge else 0,
            "cache": sizes.cache_bytes(shape, cached),
            "one layer": sizes.layer_transient(shape, prompts * self.prompt),
            # A captured graph has memory of its own, beside that of the first draw.
            "logits": sizes.draw_bytes(shape, rows) * (2 if captured else 1),
            **others,
        }
        if shape.device == "cuda":
            # The prompts are read before there is room for completions; a CPU's allocator keeps both.
            read = sizes.cache_bytes(shape, prompts * self.prompt)
            if read + items["one layer"] > items["cache"] + items["logits"]:
                items |= {"cache": read, "logits": 0}
            else:
                items["one layer"] = 0
        if merge:
            items["dense weights"] = dense
        planner.add_phase(self.stage, name, items)

    def _decoded_adapter(self) -> int:
        """Bytes of the adapter beside quantized weights: layers that read the same input share one product."""
        together = {"q_proj": 3, "k_proj": 3, "v_proj": 3, "gate_proj": 2, "up_proj": 2}
        values = 0
        for layer in self.planner.layers:
            count = together.get(layer.name.rpartition(".")[2], 1)
            values += self.planner.rank * (layer.inputs + count * layer.outputs)
        return values * self.shape.itemsize

    def _tokens(self, rows: int) -> tuple[int, int, int]:
        """Tokens of one forward over some rows, keys that they attend to, and tokens that the policy wrote.

        A prompt that is shared counts once among the tokens.
        """
        group, row = self.group, self.prompt + self.completion
        most = max(1, min(rows, self.forward_tokens // row))
        # Whole groups, or a group in even parts, as `length_batches` deals them.
        count = most // group * group if most >= group else -(-group // -(-group // most))
        keys, written = count * row, count * self.completion
        if group < 2 or count < 2 or not self.shape.shares or self.checkpointing:
            return keys, keys, written
        shared = -(-count // group) * self.prompt + written
        return (shared if shared < WORTH * keys else keys), keys, written

    def _scoring(self, others: dict[str, int]) -> None:
        """Add the phase in which the frozen roles score the completions."""
        algorithm = self.algorithm
        frozen = self.reward_heads + ("reference" in algorithm.roles) + (algorithm.value == "own")
        tokens, _, written = self._tokens(self.rows)
        policy = needs_old_logps(algorithm)
        items = {**others}
        if frozen or policy:
            states = tokens * max(1, frozen)
            chunk = sizes.logit_chunk_bytes(self.shape, written, entropy=policy)
            layer = sizes.layer_transient(self.shape, tokens)
            items |= {
                "states": sizes.state_bytes(self.shape, states, 2) + sizes.state_bytes(self.shape, tokens, 2),
                "one layer or logits": max(layer, chunk),
            }
        self.planner.add_phase(self.stage, "scoring", items)

    def _update(self, others: dict[str, int]) -> None:
        """Add the phase in which the policy, and a value, are trained."""
        algorithm, shape = self.algorithm, self.shape
        tokens, keys, written = self._tokens(-(-self.rows // algorithm.minibatches))
        trunks = 2 if algorithm.value == "own" else 1
        activations = self.planner.activations(tokens, keys, trunks, rl=True)
        entropy = "entropy" in algorithm.needs or not needs_old_logps(algorithm)
        logits = sizes.logit_chunk_bytes(shape, written, entropy=entropy)
        layer = activations.pop("one layer")
        mask = keys * self.completion * shape.itemsize if tokens < keys else 0
        items = {
            **activations,
            "attention masks": mask * trunks * (1 if self.checkpointing else shape.layers),
            "states": sizes.state_bytes(shape, keys, 3 * trunks),
            "one layer or logits": max(layer, logits),
            **others,
        }
        self.planner.add_phase(self.stage, "update", items)
