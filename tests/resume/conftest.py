import pytest
import torch

from .support import ended, pipeline, run


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(pipeline(folder))
    return ended(folder / "run"), result, folder / "run"
