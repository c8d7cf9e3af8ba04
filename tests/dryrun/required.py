"""What tests do where a dry run is not possible: they skip, or fail where it is required, as in CI."""

import os
from typing import NoReturn

import pytest

REQUIRED = "RLHF_PEFT_REQUIRE_DRY_RUN"
"""Environment variable: with it, a machine that cannot do a dry run fails the tests."""


def not_possible(reason: str) -> NoReturn:
    """Skip a test, or fail it where `REQUIRED` is set."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, and {reason}", pytrace=False)
    pytest.skip(reason)
