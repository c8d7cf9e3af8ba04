"""Where tests of a card run, the models that they make there, and what becomes of a card between them."""

import gc
import json
import signal
import time

import pytest
import torch

from tests.gpu.support import make_model

NO_CARD = "no NVIDIA card is here; --gpu-device cpu tries the code of these tests on the CPU"
LONGEST = 60
"""Seconds after which a test is given up, so that one that hangs leaves time to the others."""


def pytest_collection_modifyitems(config, items):
    """Without a card everything is skipped, for one reason."""
    if config.getoption("gpu_device") != "cpu" and not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=NO_CARD))


@pytest.fixture(scope="session")
def device(pytestconfig):
    """Where the tests compute: a card, or the CPU where the code of the tests is tried."""
    found = torch.device(pytestconfig.getoption("gpu_device"))
    return torch.device("cuda", found.index or 0) if found.type == "cuda" else found


@pytest.fixture
def card(device):
    """The card, for tests that mean nothing elsewhere."""
    if device.type != "cuda":
        pytest.skip("means nothing without a card")
    return device


@pytest.fixture(scope="session")
def model_of(tmp_path_factory, device):
    """The folder of a random model of a shape, which is made once."""
    root = tmp_path_factory.mktemp("models")

    def folder(**shape):
        path = root / "-".join(map(str, ["model", *shape.values()]))
        return path if path.exists() else make_model(path, device, **shape)

    return folder


@pytest.fixture
def write_down(request, record_property, pytestconfig):
    """Keep figures: as properties of the test, and in the file of --gpu-figures."""

    def write(**figures):
        for name, figure in figures.items():
            record_property(name, figure)
        if file := pytestconfig.getoption("gpu_figures"):
            with open(file, "a") as lines:
                lines.write(json.dumps({"test": request.node.name, **figures}) + "\n")

    return write


@pytest.fixture(autouse=True)
def limited(write_down):
    """A test that takes too long fails, and how long it took is written down."""

    def stop(number, frame):
        raise TimeoutError(f"took longer than {LONGEST} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST)
    begun = time.perf_counter()
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    write_down(seconds=round(time.perf_counter() - begun, 2))


@pytest.fixture(autouse=True)
def clean(device):
    """Every test finds an empty card without a cap."""
    yield
    gc.collect()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
