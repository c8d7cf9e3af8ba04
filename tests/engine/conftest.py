import pytest

from .support import load, save_model


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The folder of a tiny model by its architecture, made once."""
    root = tmp_path_factory.mktemp("models")

    def folder(name, seed=0):
        path = root / f"{name}-{seed}"
        return path if path.exists() else save_model(path, name, seed)

    return folder


@pytest.fixture
def llama(folder_of):
    """A fresh NF4 Llama, for tests that change it."""
    return load(folder_of("llama"))


@pytest.fixture
def dense(folder_of):
    """A fresh unquantized Llama, for tests that change it."""
    return load(folder_of("llama"), "none")
