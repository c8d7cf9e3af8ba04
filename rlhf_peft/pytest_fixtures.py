"""The pytest fixtures of `rlhf_peft.testing`. pytest loads this file every time, so it imports nothing large."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import FakePolicy, FakeRun, FakeSampleContext
    from .types import RewardBatch


@pytest.fixture
def fake_policy() -> FakePolicy:
    """A policy with random weights, the same each time."""
    from .testing import FakePolicy

    return FakePolicy()


@pytest.fixture
def reward_batch() -> RewardBatch:
    """Four completions of two prompts."""
    from .testing import make_reward_batch

    return make_reward_batch()


@pytest.fixture
def fake_context() -> FakeSampleContext:
    """A context for samplers, which scores rollouts."""
    from .testing import FakeSampleContext

    return FakeSampleContext()


@pytest.fixture
def fake_run(tmp_path: Path) -> FakeRun:
    """A run over a temporary folder."""
    from .testing import FakeRun

    return FakeRun(tmp_path)
