"""The guide's example runs, and the guide leaves nothing out."""

import asyncio
import re

import pytest

from rlhf_peft import entry_points
from rlhf_peft.cli import execute
from rlhf_peft.hookspecs import HookSpecs
from rlhf_peft.packages import KINDS
from rlhf_peft.registry import Registry
from rlhf_peft.testing import make_reward_batch

from .conftest import PACKAGES, ROOT

GUIDE = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "brevity.py"
    path.write_text(code)
    return path


def test_the_example_works(example, capsys):
    registry = Registry.load([example], no_plugins=True)
    reward = registry.make("rewards", "brevity", {"per_token": 0.02})
    batch = make_reward_batch(["abc", ""])
    assert asyncio.run(reward.score(batch)).row.tolist() == pytest.approx([-0.08, -0.02])
    assert execute(["plugins", "check", str(example)]) == 0
    assert capsys.readouterr().out == "ok      reward brevity\n"


def test_every_hook_package_group_and_kind_is_named():
    for hook in (name for name in vars(HookSpecs) if name.startswith("rlhf_peft_")):
        assert f"`{hook}(" in GUIDE
    for path in PACKAGES:
        assert f"[{path.name}]({path.name})" in GUIDE
    for word in (entry_points.COMMANDS, entry_points.RECIPES, entry_points.DISABLE, *KINDS):
        assert word in GUIDE
