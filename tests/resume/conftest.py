import shutil

import pytest
import torch

from .support import ended, pipeline, run


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The run in one piece."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    result = run(pipeline(folder))
    return ended(folder / "run"), result, folder / "run"


@pytest.fixture(scope="session")
def interrupted_once(tmp_path_factory):
    """Makes runs that were interrupted as the n-th update was logged, each once."""
    made = {}

    def make(after):
        if after not in made:
            torch.set_num_threads(1)
            folder = tmp_path_factory.mktemp(f"interrupted-{after}")
            with pytest.raises(KeyboardInterrupt):
                run(pipeline(folder), after=after)
            made[after] = folder / "run"
        return made[after]

    return make


@pytest.fixture
def interrupted(interrupted_once, tmp_path):
    """Gives the recipe of such a run, and a copy of the run in `tmp_path`."""

    def copy(after):
        shutil.copytree(interrupted_once(after), tmp_path / "run")
        (tmp_path / "run" / ".lock").unlink(missing_ok=True)
        return pipeline(tmp_path)

    return copy
