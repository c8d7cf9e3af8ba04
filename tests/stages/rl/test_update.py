"""The update is exact under any split, and its first ratios are one."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.builtin.algorithms.grpo import Grpo, GrpoOptions
from rlhf_peft.builtin.algorithms.ppo import Ppo, PpoOptions
from rlhf_peft.engine import BaseSpec, LoraSpec, SharedBase
from rlhf_peft.session.non_finite import NonFiniteGuard
from rlhf_peft.session.ranks import Ranks
from rlhf_peft.session.token_budget import TokenBudget
from rlhf_peft.stages.rl.forwards import RoleForwards, RoleNeeds
from rlhf_peft.stages.rl.update import Minibatches, Progress, Updater
from rlhf_peft.types import Batch, Rollout

from ...quantizers import held_as


@pytest.fixture(scope="module", params=["own", "policy", "reward"])
def setting(request):
    """A base with a trained-looking policy, a reward model and a value on each trunk."""
    trunk = request.param
    base = SharedBase(BaseSpec("builtin:tiny", **held_as("nf4"), device="cpu"), LoraSpec(r=4), seed=3)
    noise(base, "policy", 1)
    base.roles.freeze_reference()
    base.roles.add("reward-0", like="policy", head=True)
    noise(base, "reward-0", 2)
    if trunk == "own":
        base.roles.add("value", like="reward-0", head=True)
    else:
        base.roles.add("value", trunk="policy" if trunk == "policy" else "reward-0", head=True)
    return base, trunk


def noise(base, adapter, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if "lora_B" in name and f".{adapter}." in name:
                parameter.normal_(std=0.02, generator=generator)


def rollout(lengths=((5, 7), (3, 12), (8, 2), (4, 9), (6, 1)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, 900, (p + c,), generator=generator) for p, c in lengths]
    masks = [torch.arange(p + c) >= p for p, c in lengths]
    n = len(lengths)
    return Rollout(ids, masks, ["eos"] * n, torch.arange(n), ["sample"] * n, {"prompt": ["x"] * n})


def forwards_of(base, trunk, max_tokens=10_000):
    return RoleForwards(base, trunk, 1.0, TokenBudget("rl", max_tokens))


def ready(base, trunk, data, max_tokens=10_000):
    """PPO, and a batch with all that it needs."""
    batch, heads = Batch.of(data), ("reward-0",)
    needs = RoleNeeds(policy=True, reference=True, values=True, heads=heads)
    forwards_of(base, trunk, max_tokens).fill(batch, needs)
    batch.scores = batch.heads["reward-0"]
    algorithm = Ppo(PpoOptions(value=trunk, beta=0.1))
    batch.columns, _ = algorithm.prepare(batch)
    return algorithm, batch


def updater_of(base, trunk, algorithm, optimizer, parameters):
    return Updater(
        forwards_of(base, trunk),
        algorithm,
        Ranks(),
        optimizer,
        parameters,
        guard=NonFiniteGuard("rl", 0),
        budget=TokenBudget("rl", 10_000),
        max_grad_norm=0,
    )


def gradient(base, trunk, algorithm, batch, split):
    with base.training(["policy", "value"]) as parameters, base.without_dropout():
        updater = updater_of(base, trunk, algorithm, None, parameters)
        rows = [i for part in split for i in part]
        totals = int(batch.mask[rows].sum()), len(rows)
        plan = Minibatches(batch, torch.arange(len(batch)), torch.zeros(len(batch), dtype=torch.bool))
        progress = Progress()
        for part in split:
            updater.micro_step(plan, part, totals, progress)
        progress.later.read()
        whole = torch.cat([p.grad.flatten() for p in parameters])
        for parameter in parameters:
            parameter.grad = None
    return progress.loss, whole, (progress.smallest, progress.largest), progress.averages.means()


def test_the_first_ratios_are_one(setting):
    base, trunk = setting
    algorithm, batch = ready(base, trunk, rollout())
    for split in ([[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[4, 0], [2, 3, 1]]):
        _, _, extremes, figures = gradient(base, trunk, algorithm, batch, split)
        assert extremes[0] == pytest.approx(1.0, abs=1e-3) and extremes[1] == pytest.approx(1.0, abs=1e-3)
        assert figures["approx_kl"] < 1e-6


def test_gradients_are_those_of_the_whole_under_any_split(setting):
    base, trunk = setting
    algorithm, batch = ready(base, trunk, rollout())
    loss, whole, _, _ = gradient(base, trunk, algorithm, batch, [[0, 1, 2, 3, 4]])
    assert float(whole.norm()) > 0
    for split in ([[0], [1], [2], [3], [4]], [[3, 1], [0, 2, 4]]):
        other, parts, _, _ = gradient(base, trunk, algorithm, batch, split)
        assert other == pytest.approx(loss, abs=1e-5)
        assert torch.allclose(parts, whole, atol=1e-5 * float(whole.abs().max()) + 1e-7)


def test_the_pad_token_does_not_matter(setting, monkeypatch):
    base, trunk = setting
    algorithm, batch = ready(base, trunk, rollout())
    gradients = []
    for pad_id in (0, base.tokenizer.eos_token_id):
        tokenizer = copy.copy(base.loaded.tokenizer)
        tokenizer.pad_token_id = pad_id
        monkeypatch.setattr(SharedBase, "tokenizer", tokenizer)
        ids, mask = forwards_of(base, trunk).padded(batch, [0, 1, 2, 3, 4])
        assert ids[0, -1] == pad_id and not mask[0, -1]
        gradients.append(gradient(base, trunk, algorithm, batch, [[0, 1, 2, 3, 4]])[1])
    assert torch.allclose(*gradients, atol=1e-6)


def test_scores_do_not_depend_on_the_batch(setting):
    base, trunk = setting
    data = rollout()
    _, wide = ready(base, trunk, data)
    _, narrow = ready(base, trunk, data, max_tokens=1)
    for name in ("old_logps", "ref_logps", "values", "entropy"):
        assert torch.allclose(getattr(wide, name), getattr(narrow, name), atol=2e-4), name
    assert torch.allclose(wide.heads["reward-0"], narrow.heads["reward-0"], atol=2e-4)


def test_policy_and_reference_agree_after_an_adapter_was_trained(setting):
    base, trunk = setting
    _, batch = ready(base, trunk, rollout())
    assert base.roles.adapter_of("reference") == "reference"
    assert float((batch.old_logps - batch.ref_logps).abs().max()) < 1e-4


def test_policy_and_reference_agree_from_the_raw_base():
    base = SharedBase(BaseSpec("builtin:tiny", **held_as("nf4"), device="cpu"), LoraSpec(r=4), seed=3)
    base.roles.freeze_reference()
    batch = Batch.of(rollout())
    forwards_of(base, None).fill(batch, RoleNeeds(policy=True, reference=True))
    assert base.roles.adapter_of("reference") is None
    assert float((batch.old_logps - batch.ref_logps).abs().max()) < 1e-4


@given(
    units=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    count=st.integers(1, 5),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_minibatches_part_the_rows_that_count_and_keep_units_whole(units, count, seed, data):
    batch = Batch.of(rollout([(1, 1)] * len(units)))
    batch.train = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(units), max_size=len(units))))
    plan = Minibatches(batch, torch.tensor(units), torch.zeros(len(units), dtype=torch.bool))
    parts = list(plan.cut(count, torch.Generator().manual_seed(seed)))
    rows = sorted(i for part in parts for i in part)
    assert rows == batch.train.nonzero().flatten().tolist()
    for u in set(units):
        assert len({n for n, part in enumerate(parts) if any(units[i] == u for i in part)}) <= 1


class Catcher:
    """An optimizer that only notes the gradient."""

    def __init__(self, parameters):
        self.parameters, self.gradient = parameters, None

    def zero_grad(self, set_to_none):
        for parameter in self.parameters:
            parameter.grad = None

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])


def update(base, loss_type, zero_loss, minibatches=1):
    """The gradient of one update of five rows, the third of which is not trained on."""
    algorithm = Grpo(GrpoOptions(loss_type=loss_type, num_minibatches=minibatches))
    algorithm.max_new_tokens = 16
    batch = Batch.of(rollout())
    forwards_of(base, None).fill(batch, RoleNeeds(policy=True, reference=True))
    batch.scores = torch.zeros(5)
    batch.train = torch.tensor([True, True, False, True, True])
    batch.zero_loss = ~batch.train if zero_loss else None
    batch.columns = {"advantages": torch.tensor([1.0, -2.0, 3.0, 0.5, -0.5])}
    with base.training(["policy"]) as parameters, base.without_dropout():
        catcher = Catcher(parameters)
        updater = updater_of(base, None, algorithm, catcher, parameters)
        updater.run(batch, torch.Generator().manual_seed(0), 1)
    return catcher.gradient


@pytest.mark.parametrize(
    ("loss_type", "share"), [("grpo", 0.8), ("dr_grpo", 0.8), ("dapo", 1.0), ("bnpo", 1.0)]
)
@pytest.mark.parametrize("setting", ["own"], indirect=True)
def test_rows_of_loss_0_count_where_a_loss_is_a_mean_over_rows(setting, loss_type, share):
    base, _ = setting
    without, with_them = (update(base, loss_type, zero_loss) for zero_loss in (False, True))
    assert float(without.abs().sum()) > 0
    assert torch.allclose(with_them, share * without, atol=1e-4 * float(without.abs().max()))


def half_update(base, advantage):
    """The gradient of one GRPO update with advantages of this size, and the metrics."""
    algorithm = Grpo(GrpoOptions())
    algorithm.max_new_tokens = 16
    batch = Batch.of(rollout())
    forwards_of(base, None).fill(batch, RoleNeeds(policy=True, reference=True))
    batch.scores, batch.train = torch.zeros(5), torch.ones(5, dtype=torch.bool)
    batch.columns = {"advantages": advantage * torch.tensor([1.0, -2.0, 3.0, 0.5, -0.5])}
    with base.training(["policy"]) as parameters, base.without_dropout():
        catcher = Catcher(parameters)
        updater = updater_of(base, None, algorithm, catcher, parameters)
        metrics = updater.run(batch, torch.Generator().manual_seed(0), 1)
    return catcher.gradient, metrics


def test_small_gradients_do_not_underflow_in_float16():
    bases = []
    for dtype in ("float32", "float16"):
        base = SharedBase(
            BaseSpec("builtin:tiny", **held_as("none"), compute_dtype=dtype, device="cpu"),
            LoraSpec(r=4),
            seed=3,
        )
        noise(base, "policy", 1)
        base.roles.freeze_reference()
        bases.append(base)
    (expected, plain), (gradient, scaled) = (half_update(base, 1e-4) for base in bases)
    assert gradient.dtype == torch.float32
    # 0.095 without a scale, 0.0023 with it; 0.0023 without a scale where advantages are 1.
    assert float((gradient - expected).norm() / expected.norm()) < 0.01
    assert scaled["grad_norm"] == pytest.approx(plain["grad_norm"], rel=0.01)
    assert scaled["loss_scale"] == 2.0**16 and "loss_scale" not in plain


def test_an_update_that_overflows_in_float16_is_skipped_and_lowers_the_scale():
    spec = BaseSpec("builtin:tiny", **held_as("none"), compute_dtype="float16", device="cpu")
    base = SharedBase(spec, LoraSpec(r=4), seed=3)
    noise(base, "policy", 1)
    base.roles.freeze_reference()
    gradient, metrics = half_update(base, 1e4)  # no guard: it allows no bad update
    assert gradient is None and metrics["updates/skipped"] == 1.0 and metrics["loss_scale"] == 2.0**15
