"""What all tests share: one thread, and no network unless a test asks for it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import logging

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("short", max_examples=25, deadline=None)
settings.load_profile("short")


@pytest.fixture(autouse=True)
def seeded():
    """Tests that draw from torch's global generator draw the same numbers in any order."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def heard():
    """Our log reaches `caplog`, also after a test that ran the command line, which sends it to stderr alone."""
    logger = logging.getLogger("rlhf_peft")
    logger.propagate, logger.handlers = True, []
    yield
    logger.propagate, logger.handlers = True, []
