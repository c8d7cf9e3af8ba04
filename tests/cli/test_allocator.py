"""The allocator of a card grows its segments, unless the user has set something else."""

import os
import sys

import pytest

from rlhf_peft import cli


@pytest.fixture
def environment(monkeypatch):
    for name in cli.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield os.environ
    for name in cli.ALLOCATOR_VARIABLES:
        os.environ.pop(name, None)


@pytest.mark.skipif(sys.platform != "linux", reason="torch grows segments on Linux alone")
def test_segments_grow(environment):
    cli._grow_segments()
    assert {environment[name] for name in cli.ALLOCATOR_VARIABLES} == {"expandable_segments:True"}


@pytest.mark.parametrize("name", cli.ALLOCATOR_VARIABLES)
def test_what_the_user_has_set_stays(environment, name):
    environment[name] = "max_split_size_mb:64"
    cli._grow_segments()
    assert environment[name] == "max_split_size_mb:64"
    assert sum(other in environment for other in cli.ALLOCATOR_VARIABLES) == 1
