"""What all tests share: one thread, and no network unless a test asks for it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
