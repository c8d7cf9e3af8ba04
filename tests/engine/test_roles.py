"""Roles: entered and left without a trace, made, copied, removed."""

from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_peft.engine import POLICY, REFERENCE, VALUE, LoraSpec
from rlhf_peft.errors import ModelError

from .support import everything, load, stir, tokens

ROLES = [POLICY, REFERENCE, "reward-0", VALUE]


@pytest.fixture(scope="module")
def full(folder_of):
    """A base with every role; its tests give back its state."""
    base = load(folder_of("llama"), lora=LoraSpec(r=4, dropout=0.25), gradient_checkpointing=True)
    base.roles.freeze_reference()
    base.roles.add("reward-0", head=True)
    base.roles.add(VALUE, like="reward-0", head=True)
    for seed, role in enumerate((POLICY, "reward-0", VALUE)):
        stir(base, role, seed)
    return base


def hidden(base, role):
    with base.role(role, train=False), torch.no_grad():
        return base.forwards.hidden(tokens(2, 7))


class Oops(Exception):
    """Raised in the middle of things."""


def enter(base, stack, way):
    """Enter one of the contexts that a base has."""
    kind, role, flag = way
    if kind == "role":
        stack.enter_context(base.role(role, train=flag))
        assert base.roles.active.state.disabled is (base.roles.adapter_of(role) is None)
    elif kind == "training":
        stack.enter_context(base.training([role] if flag else [role, VALUE]))
        wanted = {id(p) for r in ([role] if flag else [role, VALUE]) for p in base.roles.parameters(r)}
        trained = [p for p in [*base.model.parameters(), *base.roles.heads.parameters()] if p.requires_grad]
        assert {id(p) for p in trained} == wanted and all(m.training for m in base.model.modules())
    elif kind == "dropout":
        stack.enter_context(base.without_dropout())
        assert not any(m.p for m in base.model.modules() if isinstance(m, torch.nn.Dropout))
    else:
        base.forwards.hidden_of([role, POLICY], tokens(1, 3))


WAYS = st.tuples(
    st.sampled_from(["role", "role", "training", "dropout", "several"]),
    st.sampled_from(ROLES),
    st.sampled_from([True, False, None]),
)


@given(ways=st.lists(WAYS, max_size=6), fails=st.booleans())
def test_any_nesting_gives_back_everything(full, ways, fails):
    before = everything(full)
    seen = []
    try:
        with ExitStack() as stack:
            for way in ways:
                seen.append(everything(full))
                enter(full, stack, way)
            if fails:
                raise Oops
    except Oops:
        pass
    assert everything(full) == before


def test_inner_roles_give_back_the_outer(full):
    apart = {role: hidden(full, role) for role in ROLES}
    assert len({float(h.sum()) for h in apart.values()}) == 4
    with full.role("reward-0", train=False), torch.no_grad():
        with full.role(REFERENCE), full.role(VALUE):
            assert torch.equal(full.forwards.hidden(tokens(2, 7)), apart[VALUE])
        with pytest.raises(Oops), full.role(POLICY, train=True):
            raise Oops
        assert torch.equal(full.forwards.hidden(tokens(2, 7)), apart["reward-0"])


def test_training_gives_gradients_to_the_named_roles_alone(full):
    with full.training([VALUE]), full.role(VALUE):
        loss = full.forwards.values(full.forwards.hidden(tokens(2, 7))).sum()
        loss.backward()
    with_gradient = {
        id(p) for p in [*full.model.parameters(), *full.roles.heads.parameters()] if p.grad is not None
    }
    assert with_gradient == {id(p) for p in full.roles.parameters(VALUE)}
    for parameter in full.roles.parameters(VALUE):
        parameter.grad = None


def test_no_other_role_inside_merged_weights(full):
    before = everything(full)
    with full.decoding.as_role(POLICY, merge=True):
        with full.role(POLICY):
            pass
        for other in (REFERENCE, "reward-0"):
            with pytest.raises(RuntimeError, match="merged weights"), full.role(other):
                pass
        with pytest.raises(RuntimeError, match="merged weights"):
            full.forwards.hidden_of(["reward-0"], tokens(1, 3))
    with pytest.raises(Oops), full.decoding.as_role(POLICY, merge=True):
        raise Oops
    assert everything(full) == before


def test_an_unknown_role_lists_the_known(full):
    with pytest.raises(ModelError, match=r"'judge'.*policy, reference, reward-0, value"), full.role("judge"):
        pass


# --- the reference


def test_the_reference_of_an_untrained_policy_is_the_raw_base(llama):
    llama.roles.freeze_reference()
    assert llama.roles.adapter_of(REFERENCE) is None and llama.roles.is_zero(REFERENCE)
    assert torch.equal(hidden(llama, POLICY), hidden(llama, REFERENCE))
    assert llama.roles.parameters(REFERENCE) == []


def test_the_reference_of_a_trained_policy_is_a_copy_that_stays(llama):
    raw = hidden(llama, POLICY)
    stir(llama, POLICY)
    llama.roles.freeze_reference()
    assert llama.roles.adapter_of(REFERENCE) == REFERENCE and not llama.roles.is_zero(POLICY)
    start = hidden(llama, REFERENCE)
    assert torch.equal(start, hidden(llama, POLICY)) and not torch.allclose(start, raw, atol=1e-3)

    ids = tokens(2, 7)
    mask = torch.ones(ids.shape, dtype=torch.bool)
    with llama.training([POLICY]) as parameters, llama.role(POLICY):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        llama.forwards.logps(llama.forwards.hidden(ids), ids, mask)[0].sum().backward()
        optimizer.step()
    assert torch.equal(hidden(llama, REFERENCE), start)
    assert not torch.allclose(hidden(llama, POLICY), start, atol=1e-3)

    llama.roles.freeze_reference()
    assert torch.equal(hidden(llama, REFERENCE), hidden(llama, POLICY))


# --- making and removing


def test_a_copy_has_the_adapter_and_the_head(llama):
    llama.roles.add("reward-0", head=True)
    stir(llama, "reward-0")
    before = everything(llama)["active"]
    llama.roles.add(VALUE, like="reward-0", head=True)
    assert torch.equal(hidden(llama, VALUE), hidden(llama, "reward-0"))
    states = [llama.roles.heads[role].state_dict() for role in (VALUE, "reward-0")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    stir(llama, VALUE, seed=9)
    assert not torch.equal(hidden(llama, VALUE), hidden(llama, "reward-0"))
    assert everything(llama)["active"] == before


def test_heads_of_an_ensemble_differ_and_score_apart(llama):
    for i in range(12):
        llama.roles.add(f"reward-{i}", head=True, lora=LoraSpec(r=2, target_modules=("q_proj",)))
    stir(llama, "reward-1")
    assert (
        llama.roles.is_zero("reward-10")
        and llama.roles.is_zero("reward-11")
        and not llama.roles.is_zero("reward-1")
    )
    roles = [f"reward-{i}" for i in range(12)]
    found = llama.forwards.hidden_of(roles, tokens(2, 7))
    scores = [llama.forwards.rewards(found[role], torch.tensor([7, 4]), role) for role in roles]
    assert len({tuple(s.tolist()) for s in scores}) == 12
    alone = llama.forwards.rewards(hidden(llama, "reward-1")[1:, :4], torch.tensor([4]), "reward-1")
    assert torch.allclose(scores[1][1:], alone, atol=1e-5)


def test_a_shared_trunk_follows_its_role(llama):
    llama.roles.add("reward-0", head=True)
    llama.roles.add(VALUE, trunk="reward-0", head=True)
    stir(llama, "reward-0")
    assert llama.roles.adapter_of(VALUE) == "reward-0"
    assert torch.equal(hidden(llama, VALUE), hidden(llama, "reward-0"))
    assert {id(p) for p in llama.roles.parameters(VALUE)} == {
        id(p) for p in llama.roles.heads[VALUE].parameters()
    }
    llama.roles.remove("reward-0")
    assert llama.roles.adapter_of(VALUE) == "reward-0" and not llama.roles.is_zero(VALUE)
    llama.roles.add("reward-0")
    assert llama.roles.is_zero(VALUE)


def test_removing_a_role_frees_its_adapter(llama):
    count = sum(p.numel() for p in llama.model.parameters())
    before = everything(llama)["active"]
    llama.roles.add("reward-0", head=True)
    with llama.role("reward-0"), pytest.raises(ModelError, match="is entered"):
        llama.roles.remove("reward-0")
    llama.roles.remove("reward-0")
    llama.roles.remove("reward-0")
    assert llama.roles.names == [POLICY] and not llama.roles.heads
    assert sum(p.numel() for p in llama.model.parameters()) == count
    assert everything(llama)["active"] == before
    with pytest.raises(ModelError, match="replaced"):
        llama.roles.remove(POLICY)


def test_the_policy_can_take_another_shape(llama):
    stir(llama, POLICY)
    llama.roles.add("reward-0", like=POLICY)
    llama.roles.add(POLICY, lora=LoraSpec(r=2, target_modules=("q_proj", "v_proj")))
    assert llama.roles.is_zero(POLICY) and not llama.roles.is_zero("reward-0")
    assert {p.shape[0] for p in llama.roles.parameters(POLICY)[::2]} == {2}
    assert torch.equal(hidden(llama, POLICY), _base_hidden(llama))
    together = llama.forwards.hidden_of([POLICY, "reward-0"], tokens(2, 7))
    assert torch.allclose(together["reward-0"], hidden(llama, "reward-0"), atol=1e-5)
    llama.roles.add("reward-1")
    assert len(llama.roles.parameters("reward-1")) == len(llama.roles.parameters("reward-0"))


def _base_hidden(base):
    with base.roles.active.restored(), torch.no_grad():
        base.roles.active.to(None)
        return base.forwards.hidden(tokens(2, 7))


def test_layers_that_only_a_later_role_adapts_are_switched_too(folder_of):
    base = load(folder_of("llama"), lora=LoraSpec(r=4, target_modules=("q_proj",)))
    plain = hidden(base, POLICY)
    base.roles.add("reward-0", lora=LoraSpec(r=4))
    stir(base, "reward-0")
    assert torch.equal(hidden(base, POLICY), plain)
    together = base.forwards.hidden_of([POLICY, "reward-0"], tokens(2, 7))
    assert torch.allclose(together[POLICY], plain, atol=1e-5)
    assert torch.allclose(together["reward-0"], hidden(base, "reward-0"), atol=1e-5)
    with base.decoding.as_role("reward-0", merge=True) as model:
        merged = model.lm.model(input_ids=tokens(2, 7)).last_hidden_state
    assert torch.allclose(merged, hidden(base, "reward-0"), atol=1e-4)


def test_parameters_are_found_by_place_not_by_name(folder_of):
    """Some models have modules named `value`; a role of that name must not take their adapters."""
    base = load(folder_of("llama"), "none")
    base.roles.add(VALUE, head=True)
    attention = base.loaded.trunk.layers[0].self_attn
    attention.value = attention.v_proj
    del attention.v_proj
    names = [name for name, _ in base.model.named_parameters() if ".value.lora_A.policy" in name]
    assert names and not set(base.roles.parameters(POLICY)) & set(base.roles.parameters(VALUE))
    assert len(base.roles.parameters(POLICY)) + 1 == len(base.roles.parameters(VALUE))


def test_everything_is_drawn_from_the_seed(folder_of):
    def drawn(seed):
        torch.manual_seed(torch.seed() % 2**32)
        base = load(folder_of("llama"), "none", seed=seed)
        base.roles.add("reward-0", head=True)
        base.roles.add("reward-1", head=True)
        return [p.clone() for role in base.roles.names for p in base.roles.parameters(role)]

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    changed = [not torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.any()]
    assert len(changed) > 10 and sum(changed) == len(changed)


def test_making_roles_leaves_the_global_generator_alone(llama):
    torch.manual_seed(1)
    llama.roles.add("reward-0", head=True)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))


def test_the_head_begins_as_the_literature_has_it(llama):
    for i in range(40):
        llama.roles.add(f"reward-{i}", trunk=POLICY, head=True)
    weights = torch.cat([llama.roles.heads[f"reward-{i}"].weight.flatten() for i in range(40)])
    assert float(weights.std()) == pytest.approx(65**-0.5, rel=0.05)
    assert not any(llama.roles.heads[f"reward-{i}"].bias.any() for i in range(40))


def test_normalisation_is_part_of_the_head(llama):
    llama.roles.add("reward-0", head=True)
    states, head = torch.randn(5, 64), llama.roles.heads["reward-0"]
    raw = head(states)
    head.shift.fill_(2.0), head.scale.fill_(4.0)
    assert torch.allclose(head(states), (raw - 2) / 4)
    assert head(states.bfloat16()).dtype == torch.float32
