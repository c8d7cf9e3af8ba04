"""An environment to install plugins in: it sees the packages of the one that runs the tests and changes none."""

import importlib.metadata
import os
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rlhf_peft

ROOT = Path(rlhf_peft.__file__).parent.parent
PACKAGES = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def needs_are_here(package: Path) -> bool:
    """Whether what a package depends on is installed, so that it can be installed without a network."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    here = {canonicalize_name(found.name) for found in importlib.metadata.distributions() if found.name}
    return {canonicalize_name(Requirement(need).name) for need in project["dependencies"]} <= here


class Environment:
    """Runs the program, and whatever else, in a virtual environment without a network."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
        binaries = "Scripts" if os.name == "nt" else "bin"
        self.python = folder / binaries / ("python.exe" if os.name == "nt" else "python")
        own = Path(self.out("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        places = [sysconfig.get_path("purelib"), str(ROOT)]
        lines = [f"import site; site.addsitedir({place!r})" for place in places]
        (own / "seen.pth").write_text("\n".join(lines) + "\n")

    def run(self, *arguments, cwd=None, **extra):
        settings = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "COV_", "RLHF_"))},
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
            **extra,
        }
        return subprocess.run(
            [str(self.python), *map(str, arguments)],
            capture_output=True,
            text=True,
            env=settings,
            cwd=cwd,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def out(self, *arguments, **options) -> str:
        done = self.run(*arguments, **options)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def program(self, *arguments, **options):
        return self.run("-m", "rlhf_peft", *arguments, **options)


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "env")


def write_package(folder: Path, name: str, code: str, points: str, dependencies: str = "") -> Path:
    """A distribution of one module."""
    folder = folder / name
    folder.mkdir(parents=True)
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{name}"\nversion = "1.0"\ndependencies = [{dependencies}]\n'
        f'{points.format(module=module)}\n[tool.setuptools]\npy-modules = ["{module}"]\n'
    )
    return folder


PLUGIN = '[project.entry-points.rlhf_peft]\n{module} = "{module}"'


def reward_code(name: str) -> str:
    return f'''
import torch
from rlhf_peft.plugin import Options, Scores, hookimpl

class Length:
    """Longer is better."""
    class Options(Options):
        """None."""
    roles, timeout = (), None
    def __init__(self, options):
        pass
    async def score(self, batch):
        return Scores(row=torch.tensor([float(len(text)) for text in batch.texts]))

@hookimpl
def rlhf_peft_register_rewards(register):
    register("{name}", Length)
'''
