"""`rlhf-peft plugins new` writes packages whose tests pass at once."""

import os
import subprocess
import sys

import pytest
import yaml

from rlhf_peft import cli
from rlhf_peft.errors import UsageError
from rlhf_peft.packages import KINDS, write
from rlhf_peft.packages.template import module_name, registered_name


def test_every_kind_of_new_package_passes_its_own_tests_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        assert cli.execute(["plugins", "new", f"rlhf-peft-new-{kind}", "--kind", kind]) == 0
        out, err = capsys.readouterr()
        assert all((tmp_path / line).is_file() for line in out.splitlines()) and len(out.splitlines()) == 6
        assert err.startswith("next: ")
    packages = sorted(tmp_path.iterdir())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            "-c",
            "pytest.ini",
        ]
        + [str(path / "tests") for path in packages],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for path in packages:
        workflow = yaml.safe_load((path / ".github" / "workflows" / "test.yml").read_text())
        assert len(workflow["jobs"]["test"]["strategy"]["matrix"]["core"]) == 2
        assert "__" not in (path / "pyproject.toml").read_text() + (path / "README.md").read_text()
        for linter in ("check", "--select=E,F,I,B,UP,SIM,RUF"), ("format", "--check"):
            ruff = [sys.executable, "-m", "ruff", *linter, "--line-length=120", "--no-cache", "."]
            result = subprocess.run(ruff, capture_output=True, text=True, timeout=60, check=False, cwd=path)
            assert result.returncode == 0, result.stdout


def test_new_never_overwrites(tmp_path, capsys):
    files = write("rlhf-peft-x", "reward", tmp_path / "x")
    text = files[0].read_text()
    with pytest.raises(UsageError, match="there already"):
        write("rlhf-peft-x", "sampler", tmp_path / "x")
    assert files[0].read_text() == text
    assert (
        cli.execute(["plugins", "new", "rlhf-peft-length", "--kind", "reward", "--dest", str(tmp_path / "y")])
        == 0
    )
    warned = "the reward length is there already" in capsys.readouterr().err
    assert cli.execute(["schema", "rewards.length"]) == (0 if warned else 2)


def test_names():
    assert module_name("RLHF.Peft--Short") == "rlhf_peft_short"
    assert registered_name("rlhf_peft_Short") == "short"
