"""States of a whole model that are set for a while."""

from torch import nn

from rlhf_peft.engine import POLICY
from rlhf_peft.engine.module_state import mode

from .support import load, tokens


def modes(base):
    return {module.training for module in base.model.modules()}


def test_all_modules_are_in_the_mode_of_the_outermost_one(folder_of):
    base = load(folder_of("llama"), "none")
    assert modes(base) == {False}
    base.roles.add("reward-0", head=True)
    assert modes(base) == {False}
    with base.training([POLICY]):
        assert modes(base) == {True}
        base.roles.add("value", head=True)
        assert modes(base) == {True}
        base.forwards.hidden_of([POLICY, "reward-0"], tokens(2, 5))
        assert modes(base) == {True}
        with base.role(POLICY, train=False):
            assert modes(base) == {False}
        assert modes(base) == {True}
    assert modes(base) == {False}


def test_a_model_in_the_wanted_mode_is_not_walked(folder_of, monkeypatch):
    base = load(folder_of("llama"), "none")
    walked = []
    plain = nn.Module.children
    monkeypatch.setattr(nn.Module, "children", lambda self: walked.append(self) or plain(self))
    with mode(base.model, False):
        pass
    assert not walked
    with mode(base.model, True):
        assert base.model.training
    assert walked and not base.model.training


def test_an_adapter_that_is_active_already_is_not_set_again(folder_of, monkeypatch):
    base = load(folder_of("llama"), "none")
    base.roles.add("reward-0", head=True)
    active, calls = base.roles.active, []
    from rlhf_peft.engine import active_adapter

    plain = active_adapter.activate
    monkeypatch.setattr(active_adapter, "activate", lambda *given: calls.append(given) or plain(*given))
    with base.role(POLICY), base.role(POLICY), active.restored():
        pass
    assert not calls
    with base.role("reward-0"):
        assert len(calls) == 1
    assert len(calls) == 2
