from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

import pytest

from rlhf_peft import maths


def test_exports_are_sorted_and_complete():
    public = {n for n, x in vars(maths).items() if inspect.isfunction(x) and not n.startswith("_")}
    assert maths.__all__ == sorted(maths.__all__)
    assert set(maths.__all__) == public
    for module in Path(maths.__file__).parent.glob("[a-z]*.py"):
        tree = ast.parse(module.read_text())
        names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}
        assert names <= public


@pytest.mark.parametrize("name", maths.__all__)
def test_every_function_documents_arguments_and_result(name):
    function = getattr(maths, name)
    text = inspect.getdoc(function) or ""
    assert "Returns:" in text
    arguments = text.partition("Args:")[2].partition("Returns:")[0]
    for parameter in inspect.signature(function).parameters:
        assert f"    {parameter}: " in arguments


def test_imports_torch_and_the_standard_library_alone():
    for module in Path(maths.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots = {(node.module or "").split(".")[0]}
            else:
                continue
            assert roots <= sys.stdlib_module_names | {"torch"}, module.name
