"""A plugin is checked as a whole: each thing that it registers, by the rules of its kind."""

from types import SimpleNamespace

import pytest
import torch
from pydantic import Field

from rlhf_peft.errors import PluginError
from rlhf_peft.plugin import (
    Options,
    Scores,
    hookimpl,
)
from rlhf_peft.testing import (
    check_plugin,
)

from .support import Letters, giving, with_


class Needy(Options):
    """One that has no default."""

    path: str = Field(description="A file.")


def module(**rewards):
    @hookimpl
    def rlhf_peft_register_rewards(register):
        for name, factory in rewards.items():
            register(name, factory)

    return SimpleNamespace(rlhf_peft_register_rewards=rlhf_peft_register_rewards)


def test_a_plugin_is_checked_whole():
    bad = with_(Letters, score=giving(lambda b: Scores(row=torch.zeros(3))))
    broken = with_(Letters, score=giving(lambda b: 1 / 0))
    findings = check_plugin(module(fine=Letters, bad=bad, broken=broken, needy=with_(Letters, Options=Needy)))
    lines = [str(finding) for finding in findings]
    assert lines[0] == "ok      reward fine"
    assert lines[1].startswith("FAILED  reward bad: reward Bad gave scores (3,) for 4")
    assert lines[2] == "FAILED  reward broken: raised ZeroDivisionError: division by zero"
    assert lines[3] == "skipped reward needy: its options need a value: path"
    with pytest.raises(PluginError, match="the name learned is taken"):
        check_plugin(module(learned=Letters))
