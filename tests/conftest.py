"""What all tests share: one thread, no network unless a test asks for it, and our own warnings as errors."""

import os
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import atexit
import gc
import logging
import shutil
import tempfile
import warnings
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import accelerate.utils.memory
import pytest
import torch
from hypothesis import settings

from tests.blame import is_own, raised_by_us, warner_frame
from tests.ready_program import close_all

# The user's own cache of rows is neither read nor written; all processes of the tests share one of their own.
if not os.environ.get("RLHF_PEFT_TESTS_CACHE"):
    os.environ["RLHF_PEFT_TESTS_CACHE"] = tempfile.mkdtemp(prefix="rlhf-peft-tests-cache-")
    atexit.register(shutil.rmtree, os.environ["RLHF_PEFT_TESTS_CACHE"], ignore_errors=True)
os.environ["RLHF_PEFT_CACHE"] = os.environ["RLHF_PEFT_TESTS_CACHE"]

torch.set_num_threads(1)
settings.register_profile("short", max_examples=25, deadline=None)
settings.load_profile("short")


@contextmanager
def our_warnings_are_errors():
    """What our own code warns of is an error; what other libraries warn of is counted by pytest, and no more."""
    shown = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None):
        compiled = issubclass(category, SyntaxWarning) and is_own(filename)
        if compiled or raised_by_us(warner_frame()):
            raise message if isinstance(message, Warning) else category(message)
        warnings._showwarnmsg_impl(warnings.WarningMessage(message, category, filename, lineno, file, line))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_collection(session):
    """Most modules are imported while tests are collected."""
    with our_warnings_are_errors():
        return (yield)


def pytest_addoption(parser):
    parser.addoption("--gpu-device", default="cuda:0", help="where tests/gpu run; cpu tries their code only")
    parser.addoption(
        "--gpu-figures", help="file to which tests/gpu write what they measure, a JSON line each"
    )


def pytest_configure(config):
    """Tests without the marker `gpu` use no card, also where there is one: they compute on the CPU and in float32."""
    if not re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item):
    # What libraries warn of on a card is not known yet, and a warning is not what tests on a card look for.
    on_a_card = item.get_closest_marker("gpu") is not None
    with nullcontext() if on_a_card else our_warnings_are_errors():
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def cheap_collections():
    """Trainers collect garbage often; what was imported, or is old, need not be looked through each time.

    accelerate looks through all objects twice in each training, which is for the memory of a GPU. What was imported
    stays frozen at the end, where pytest and Python look through all objects several times.
    """
    accelerate.utils.memory.gc = SimpleNamespace(collect=lambda: gc.collect(1))
    gc.collect()
    gc.freeze()
    yield
    accelerate.utils.memory.gc = gc


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """Whether the content of a file has reached the disk shows only after a power cut, and each wait costs 2 ms.

    A run waits a hundred times. An invalid handle is still an error.
    """
    waiting = os.fsync
    os.fsync = lambda handle: os.fstat(handle) and None
    yield
    os.fsync = waiting


@pytest.fixture(autouse=True, scope="module")
def no_ready_program_is_left():
    """The servers that a file's tests have started end with it."""
    yield
    close_all()


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


LONG = ("test_quickstart", "test_tinystories", "test_resume", "test_crashes", "test_sweep", "test_trl_faults")
"""Files with few tests that take long: begun first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.path.stem.startswith(LONG))
