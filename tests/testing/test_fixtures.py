"""The fixtures, as pytest finds them in an installed package."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import rlhf_peft

TEST = """
def test_all(fake_policy, reward_batch, fake_context, fake_run):
    assert fake_policy.decode([2]) == "a"
    assert len(reward_batch) == 4
    assert fake_context.score(reward_batch.rollout).shape == (4,)
    assert fake_run.folder.is_dir()
"""


def test_the_fixtures_are_there(tmp_path):
    (tmp_path / "test_it.py").write_text(TEST)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            *_plugin(),
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _plugin():
    """What names the module to pytest where the installed package is older than its entry point."""
    written = tomllib.loads((Path(rlhf_peft.__file__).parent.parent / "pyproject.toml").read_text())
    module = written["project"]["entry-points"]["pytest11"]["rlhf_peft"]
    files = importlib.metadata.entry_points(group="pytest11", name="rlhf_peft")
    return [] if any(point.value == module for point in files) else ["-p", module]
