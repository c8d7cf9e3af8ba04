"""A warning of our own code fails a test; one of another library does not, whoever it is said to be caused by."""

import subprocess
import sys

from tests.blame import ROOT

THIRD_PARTY = """
import warnings

def old(level):
    warnings.warn("old() goes in 2.0", FutureWarning, stacklevel=level)
"""

TESTS = """
import pytest
import third_party
from tests.own_warning import warn_of_something_old

def test_a_library_that_warns():
    third_party.old(1)

def test_a_library_that_names_the_line_that_calls_it():
    third_party.old(2)

def test_our_package():
    warn_of_something_old()

def test_a_warning_that_is_asked_for():
    with pytest.warns(FutureWarning):
        warn_of_something_old()
"""


AT_IMPORT = """
from tests.own_warning import warn_of_something_old

warn_of_something_old()

def test_nothing(): ...
"""


def test_only_our_own_warnings_fail(tmp_path):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "third_party.py").write_text(THIRD_PARTY)
    (tmp_path / "test_policy.py").write_text(TESTS)
    done = run(tmp_path, "test_policy.py")
    assert "1 failed, 3 passed, 2 warnings" in done, done
    assert "FAILED" in done and "test_our_package - FutureWarning: something old" in done


def test_our_warnings_fail_while_tests_are_collected_too(tmp_path):
    (tmp_path / "test_import.py").write_text(AT_IMPORT)
    done = run(tmp_path, "test_import.py")
    assert "1 error" in done and "FutureWarning: something old" in done, done


def run(folder, file):
    """What pytest says of a file of tests, under this repository's rules."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n", "0", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT),
            *(
                "-p",
                "tests.conftest",
                "-p",
                "no:cacheprovider",
                "-o",
                f"pythonpath={folder / 'site-packages'}",
            ),
            folder / file,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout
