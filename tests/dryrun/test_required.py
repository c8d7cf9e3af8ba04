"""CI does not pass on a machine on which the tests of the dry run would be skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dryrun.drive import UNAVAILABLE
from tests.dryrun.required import REQUIRED, not_possible

ROOT = Path(__file__).parents[2]


def test_a_machine_without_a_compiler_skips_or_fails(monkeypatch, tmp_path):
    surroundings = {**os.environ, "CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tests.dryrun.drive", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == UNAVAILABLE and "needs a C++ compiler" in done.stdout

    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs a C"):
        not_possible(done.stdout.strip())
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=r"REQUIRE_DRY_RUN is set, and a dry run needs a C"):
        not_possible(done.stdout.strip())


@pytest.mark.skipif(not (ROOT / ".ci" / "run").is_file(), reason="an installation has no .ci folder")
def test_ci_requires_it():
    assert f"export {REQUIRED}=1\n" in (ROOT / ".ci" / "run").read_text()
