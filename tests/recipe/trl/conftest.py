"""A converter of configurations, and a registry of built-ins."""

import json

import pytest

from rlhf_peft.recipe import convert
from rlhf_peft.registry import Registry


@pytest.fixture(scope="module")
def registry():
    return Registry.load((), True)


@pytest.fixture
def made(tmp_path):
    def make(config, trainer=None, name="config.yaml"):
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / name).write_text(text)
        return convert(tmp_path / name, trainer)

    return make
