"""Private names of other libraries stand in the package's `compat` modules, and nowhere else."""

import ast
import sys
from pathlib import Path

import pytest

import rlhf_peft

ROOT = Path(rlhf_peft.__file__).parent
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
TREES = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in MODULES}


def is_compat(path):
    return path.stem == "compat" or path.parent.name == "compat"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def names_of_our_own():
    """Names that the package itself defines or sets outside of its compat modules."""
    names = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not is_compat(
                path
            ):
                names.add(node.name)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not is_compat(path):
                names.add(node.attr)
    return names


OWN = names_of_our_own()
STANDARD = sys.stdlib_module_names


def foreign_privates(tree):
    """Private names of others that a module uses: as attributes, in imports, and by `getattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in OWN:
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            if of not in STANDARD:
                yield node.lineno, node.attr
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] not in STANDARD:
            for word in [*node.module.split("."), *(alias.name for alias in node.names)]:
                if is_private(word):
                    yield node.lineno, word
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield node.lineno, name.value


@pytest.mark.parametrize("path", [path for path in MODULES if not is_compat(path)], ids=str)
def test_no_module_uses_a_private_name_of_another_library(path):
    uses = list(foreign_privates(TREES[path]))
    assert not uses, f"rlhf_peft/{path}: move these to engine/compat or trl_bridge/compat.py: {uses}"


def test_the_search_finds_what_it_looks_for():
    source = "from peft import _x\ngetattr(a, '_b')\nx._shared_state\n"
    assert {name for _, name in foreign_privates(ast.parse(source))} >= {"_x", "_b", "_shared_state"}
    assert any(list(foreign_privates(TREES[path])) for path in MODULES if is_compat(path))


FOREIGN_TYPES = ("CacheLayerMixin", "BaseTunerLayer")


@pytest.mark.parametrize("name", FOREIGN_TYPES)
def test_unstable_classes_are_imported_in_compat_alone(name):
    users = {
        str(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and any(a.name == name for a in node.names)
    }
    assert users and all(is_compat(Path(user)) for user in users), users
