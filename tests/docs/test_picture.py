"""The picture of the rooms shows the package as it is."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_picture", ROOT / "docs" / "make_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path):
    """A package of three rooms, each of which imports in another way."""
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.importlinter.contracts]]\ntype = "layers"\n'
        'layers = ["rlhf_peft.top", "rlhf_peft.middle | rlhf_peft.aside", "rlhf_peft.ground"]\n'
    )
    files = {
        "__init__.py": "",
        "top/__init__.py": "",
        "top/deep/__init__.py": "from ...middle import thing\nfrom ... import ground\n",
        "middle.py": "def late():\n    from .ground import number\n",
        "aside.py": "import rlhf_peft.ground.part, json\n",
        "ground/__init__.py": "from .part import number\n",
        "ground/part.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "rlhf_peft" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_picture_is_up_to_date(script):
    written = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert written == script.picture(), "run: python docs/make_picture.py"


def test_every_kind_of_import_is_read(script, package):
    rooms = ["top", "middle", "aside", "ground"]
    assert script.imports(rooms, package) == {
        "top": {"middle", "ground"},
        "middle": {"ground"},
        "aside": {"ground"},
        "ground": set(),
    }


def test_an_arrow_that_follows_from_others_is_left_out(script, package):
    assert "top imports middle" in (drawn := script.picture(package))
    assert "top imports ground" not in drawn
    assert "aside imports ground" in drawn


def test_every_room_of_the_package_stands_in_the_contract(script):
    rooms = {room for row in script.layers() for room in row}
    files = {p.stem for p in (ROOT / "rlhf_peft").glob("*.py") if not p.stem.startswith("__")}
    folders = {p.parent.name for p in (ROOT / "rlhf_peft").glob("*/__init__.py")}
    assert files | folders == rooms
