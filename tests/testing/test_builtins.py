"""What ships keeps the rules that third parties are held to."""

import subprocess
import sys

import pytest

from rlhf_peft.registry import Registry
from rlhf_peft.testing import plugins

OPTIONS = {
    "tiny": {"part": "prompts", "size": 20},
    "regex": {"pattern": "fox"},
    "length": {"target": 4},
}
SKIP = {
    "http": "needs a server; its own tests have one",
    "judge": "needs a server; its own tests have one",
    "vllm_server": "needs a server; its own tests have one",
    "classifier": "needs a reward model; its own tests make one",
}
REGISTRY = Registry.load(no_plugins=True)
ENTRIES = [entry for loaded in REGISTRY.plugins for entry in loaded.entries]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_a_built_in_keeps_the_rules(entry):
    if entry.name in SKIP:
        pytest.skip(SKIP[entry.name])
    plugins.CHECKS[entry.kind](entry.factory, OPTIONS.get(entry.name, {}))


def test_the_checks_import_no_pytest():
    code = "import sys, rlhf_peft.testing; print('pytest' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"


def test_the_fixtures_import_no_torch():
    code = "import sys, rlhf_peft.pytest_fixtures; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"
