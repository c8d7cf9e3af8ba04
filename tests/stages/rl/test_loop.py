"""The RL stage as a whole, on the shipped model."""

import json
import math
from contextlib import ExitStack

import pytest
import torch

from rlhf_peft.builtin.algorithms import Grpo
from rlhf_peft.engine.forwards import Forwards
from rlhf_peft.engine.roles import Roles
from rlhf_peft.errors import GuardError, UsageError
from rlhf_peft.hookspecs import hookimpl
from rlhf_peft.stages import reward_model
from rlhf_peft.stages.rl import loop, parts
from rlhf_peft.stages.rl.forwards import RoleForwards
from rlhf_peft.stages.rl.metrics import reward_metrics, undocumented

from .support import algorithm_of, logged, outcome_of, run, same, stage, with_coarse


@pytest.fixture
def reward_stage():
    return {
        "stage": "reward_model",
        "dataset": {"name": "tiny", "part": "preferences", "size": 32},
        "batch_size": 16,
        "max_steps": 1,
        "ensemble": 2,
    }


@pytest.mark.parametrize("value", ["own", "policy", "reward"])
def test_ppo_with_a_learned_reward_on_every_value_trunk(make_context, reward_stage, value):
    ctx = make_context(
        reward_stage,
        stage(rewards=[{"name": "learned", "reduce": "mean-std"}], algorithm={"value": value}, kl_limit=1000),
    )
    reward_model.run(ctx.recipe.stages[0], ctx)
    before = {n: p.detach().clone() for n, p in ctx.base.model.named_parameters() if ".policy." not in n}
    out = run(ctx)
    for name, parameter in ctx.base.model.named_parameters():
        if name in before and ".value." not in name:
            assert torch.equal(parameter, before[name]), f"{name} moved"
    assert not ctx.base.roles.is_zero("policy")
    lines = [line for line in logged(ctx) if line["stage"] == "rl" and line["step"] > 0]
    assert len(lines) == 2 and out["before"]["eval/kl"] == pytest.approx(0.0, abs=1e-4)
    algorithm = algorithm_of(ctx)
    names = [name for name in lines[-1] if name not in ("stage", "step", "time")]
    learned = reward_metrics("learned", ctx.registry.metrics("rewards")["learned"])
    assert undocumented(names, algorithm.metrics, learned) == []
    wanted = (
        "reward rewards/learned/mean rewards/learned/disagreement kl approx_kl entropy clip_ratio/region_mean "
        "value/loss value/explained_variance ratio/min ratio/mean ratio/max completions/mean_length "
        "completions/eos_rate grad_norm learning_rate sampling/sampling_logp_difference/mean time/rollout time/scoring "
        "time/update tokens_per_second/rollout tokens_per_second/scoring tokens_per_second/update reward_std "
        "completions/clipped_ratio frac_reward_zero_std num_tokens step_time"
    )
    for name in wanted.split():
        assert name in lines[-1], name
        assert lines[-1][name] is not None and math.isfinite(lines[-1][name]), name


def test_the_first_step_starts_at_the_reference(make_context):
    ctx = make_context(stage(max_steps=1, algorithm={"num_epochs": 1, "num_minibatches": 1}))
    run(ctx)
    first = logged(ctx)[1]
    assert first["kl"] == pytest.approx(0.0, abs=1e-3)
    assert first["ratio/min"] == pytest.approx(1.0, abs=1e-3)
    assert first["ratio/max"] == pytest.approx(1.0, abs=1e-3)
    assert first["sampling/sampling_logp_difference/max"] < 1e-3


def test_the_same_seed_gives_the_same_run(make_context):
    kept = []
    for _ in range(2):
        ctx = make_context(stage())
        run(ctx)
        kept.append(
            [
                {k: v for k, v in line.items() if "time" not in k and "per_second" not in k}
                for line in logged(ctx)
            ]
        )
    assert kept[0] == kept[1]


def test_a_wrong_reference_stops_the_run(make_context, monkeypatch):
    ctx = make_context(stage())
    with torch.no_grad():
        for name, parameter in ctx.base.model.named_parameters():
            if "lora_B" in name and ".policy." in name:
                parameter.normal_(std=0.05)
    monkeypatch.setattr(Roles, "freeze_reference", lambda roles: roles.add("reference"))
    with pytest.raises(GuardError, match="wrong model"):
        run(ctx)


@pytest.mark.parametrize("given", [{}, {"adam_epsilon": 1e-5, "adam_beta1": 0.8, "adam_beta2": 0.95}])
def test_adamw_has_the_coefficients_of_the_recipe(make_context, given):
    asked = {**stage(), **given}
    if not given:
        del asked["adam_epsilon"]
    ctx = make_context(asked)
    with ExitStack() as stack:
        parts.load_roles(ctx.recipe.stages[-1], ctx.base)
        ctx.base.roles.freeze_reference()
        optimizer = parts.build(ctx.recipe.stages[-1], ctx, stack).updater.optimizer
    usual = {"adam_epsilon": 1e-8, "adam_beta1": 0.9, "adam_beta2": 0.999, **given}
    for group in optimizer.param_groups:
        assert group["eps"] == usual["adam_epsilon"]
        assert group["betas"] == (usual["adam_beta1"], usual["adam_beta2"])


def test_temperature_zero_is_refused(make_context):
    with pytest.raises(UsageError, match="temperature"):
        run(make_context(stage(sampler={"name": "cached", "temperature": 0})))


def test_a_value_on_the_reward_trunk_needs_a_reward_model(make_context):
    with pytest.raises(UsageError, match=r"algorithm\.value"):
        run(make_context(stage(algorithm={"value": "reward"})))


def test_an_algorithm_that_never_has_enough_is_stopped(make_context, monkeypatch):
    from rlhf_peft.builtin.algorithms.ppo import Ppo
    from rlhf_peft.errors import PluginError
    from rlhf_peft.types import Selection

    monkeypatch.setattr(loop, "MOST_ROUNDS", 3)
    monkeypatch.setattr(Ppo, "select", lambda self, batch, round: Selection(~batch.scores.isnan(), 3))
    with pytest.raises(PluginError, match="3 more prompts after 3 rounds"):
        run(make_context(stage(max_steps=1)))


ALGORITHMS = {
    "grpo": {"num_generations": 4, "beta": 0.04, "num_minibatches": 2},
    "gspo": {"num_generations": 4, "num_epochs": 2},
    "cispo": {"num_generations": 4, "num_epochs": 2, "entropy_coef": 0.01},
    "rloo": {"num_generations": 4},
    "reinforce_plus_plus": {},
    "remax": {},
    "online_dpo": {"num_generations": 3},
    "rejection_sampling": {"num_generations": 4},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_the_policy_and_explains_its_figures(make_context, name):
    plain = {**stage(max_steps=2, prompts_per_step=4), "algorithm": {"name": name, **ALGORITHMS[name]}}
    ctx = make_context(plain)
    run(ctx)
    assert not ctx.base.roles.is_zero("policy")
    lines = [line for line in logged(ctx) if line["step"] > 0]
    algorithm = algorithm_of(ctx)
    names = [key for line in lines for key in line if key not in ("stage", "step", "time")]
    assert undocumented(names, algorithm.metrics) == []
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    if "num_generations" in ALGORITHMS[name]:
        assert lines[0]["frac_reward_zero_std"] < 1.0


def test_steps_with_equal_scores_log_the_sampler_all_the_same(make_context):
    equal = {"name": "length", "max": 10_000}
    plain = {**stage(max_steps=2, rewards=[equal]), "algorithm": {"name": "grpo", "num_generations": 4}}
    ctx = make_context(plain)
    run(ctx)
    lines = [line for line in logged(ctx) if line["step"] > 0]
    assert [line["frac_reward_zero_std"] for line in lines] == [1.0, 1.0]
    for line in lines:
        assert 0 <= line["sampling/sampling_logp_difference/mean"] < 0.1
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=0.1)
        assert line["entropy"] > 0
    assert ctx.base.roles.is_zero("policy")


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_an_update_that_says_the_old_log_probs_itself_is_the_same(make_context, monkeypatch, beta):
    algorithm = {"name": "grpo", "num_generations": 4, "beta": beta}
    quick = outcome_of(with_coarse(make_context, algorithm=algorithm, max_steps=1))
    monkeypatch.setattr(parts, "needs_old_logps", lambda algorithm: True)
    # With a forward for every row, the figures of the policy are over all rows in both.
    monkeypatch.setattr(Grpo, "no_gradient", lambda self, batch: torch.zeros(len(batch), dtype=torch.bool))
    plain = outcome_of(with_coarse(make_context, algorithm=algorithm, max_steps=1))
    if beta:
        same(quick, plain)
    else:
        same((quick[0], []), (plain[0], []))


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_prompts_that_are_read_once_change_nothing(make_context, monkeypatch, name):
    algorithm = {"name": name, "num_generations": 4, "num_minibatches": 2, "beta": 0.04}
    quick = outcome_of(with_coarse(make_context, algorithm=algorithm))
    monkeypatch.setattr(Forwards, "share_prompts", lambda *args: None)
    same(quick, outcome_of(with_coarse(make_context, algorithm=algorithm)))


def test_rows_without_gradient_are_left_out_of_the_update(make_context, monkeypatch):
    algorithm = {"name": "grpo", "num_generations": 4, "num_minibatches": 2}
    quick = outcome_of(with_coarse(make_context, algorithm=algorithm))
    forwards, outputs = [], RoleForwards.outputs

    def counting(self, ids, *args, **options):
        forwards.append(len(ids))
        return outputs(self, ids, *args, **options)

    monkeypatch.setattr(Grpo, "no_gradient", lambda self, batch: torch.zeros(len(batch), dtype=torch.bool))
    monkeypatch.setattr(RoleForwards, "outputs", counting)
    plain = outcome_of(with_coarse(make_context, algorithm=algorithm))
    assert sum(forwards) == 2 * 16
    same((quick[0], []), (plain[0], []))


def test_greedy_baselines_enter_no_figure(make_context):
    ctx = make_context({**stage(max_steps=1, eval={}), "algorithm": {"name": "remax"}})
    run(ctx)
    (line,) = logged(ctx)
    assert line["rows"] == 8
    rows = [json.loads(text) for text in (ctx.run.path / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4


def test_dynamic_sampling_asks_for_more_prompts(make_context):
    algorithm = {"name": "grpo", "num_generations": 2, "dynamic_sampling": True, "max_rounds": 3}
    ctx = with_coarse(make_context, algorithm=algorithm, max_steps=1)
    batches = []

    class Observer:
        @hookimpl
        def rlhf_peft_rollout_end(self, run, stage, step, batch):
            batches.append(batch)

    ctx.registry.add(Observer(), "observer", "tests", "1", "a test")
    run(ctx)
    (line,) = logged(ctx)
    (batch,) = batches
    # Half of four, then of two, then of one (its group has number 0): three rounds, at most four groups that tell.
    assert line["sampling/rounds"] == 3.0
    assert len(batch) == 2 * (4 + 2 + 1) and batch.rollout.group.unique().tolist() == list(range(7))
    assert line["rows"] == 6.0


def test_rows_not_drawn_from_the_policy_are_refused_where_ratios_are_taken(make_context):
    cut = {"name": "cached", "max_new_tokens": 16, "top_p": 0.9}
    with pytest.raises(UsageError, match="needs draws from all of it"):
        run(make_context(stage(sampler=cut)))
    dpo = {"name": "online_dpo", "num_generations": 3}
    ctx = make_context({**stage(max_steps=1, eval={}, sampler=cut, prompts_per_step=4), "algorithm": dpo})
    run(ctx)
    assert not ctx.base.roles.is_zero("policy")


def test_samples_are_written_with_their_scores(make_context):
    ctx = make_context(stage(max_steps=1))
    run(ctx)
    rows = [json.loads(line) for line in (ctx.run.path / "samples.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if row.get("split") == "eval"]
    assert [row["step"] for row in evaluated] == [0] * 8 + [1] * 8
    trained = [row for row in rows if "split" not in row]
    assert len(trained) == 4
    for row in trained:
        assert row["score"] == pytest.approx(row["rewards"]["tiny-gold"])
        assert row["prompt"][-1]["role"] == "user" and isinstance(row["completion"], str)


def test_observers_hear_of_rollouts_steps_and_files(make_context):
    heard = []

    class Observer:
        @hookimpl
        def rlhf_peft_rollout_end(self, run, stage, step, batch):
            heard.append(("rollout", step, len(batch)))

        @hookimpl
        def rlhf_peft_step_end(self, run, stage, step, metrics):
            heard.append(("step", step, run.name))

        @hookimpl
        def rlhf_peft_checkpoint_saved(self, run, stage, step, folder):
            heard.append(("saved", step, folder.name))

    ctx = make_context(stage(max_steps=1))
    ctx.registry.add(Observer(), "observer", "tests", "1", "a test")
    run(ctx)
    assert heard == [("step", 0, "run"), ("rollout", 1, 8), ("step", 1, "run"), ("saved", 1, "policy")]


def test_prompts_that_leave_no_room_are_refused_with_their_row(make_context, tmp_path):
    from rlhf_peft.errors import DataError

    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "a fox and a bear " * 40}) + "\n")
    with pytest.raises(DataError, match=r"row 1"):
        run(make_context(stage(dataset={"path": str(file)}, eval={}, rewards=[{"name": "tiny-gold"}])))
