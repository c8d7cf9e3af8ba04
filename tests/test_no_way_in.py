"""Nothing that a user or a run folder holds is ever run: no pickles, no unsafe YAML, no code from data."""

import ast
from pathlib import Path

import pytest

import rlhf_peft

FILES = sorted(Path(rlhf_peft.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "torch.load": "weights come from safetensors",
    "numpy.load": "arrays may be pickled",
    "np.load": "arrays may be pickled",
    "yaml.load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "yaml.full_load": "use yaml.safe_load",
    "eval": "no text is code",
    "exec": "no text is code",
    "os.system": "no shell",
}


def dotted(node):
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return None


def findings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in CALLS:
                yield f"line {node.lineno}: calls {called}: {CALLS[called]}"
            if any(keyword.arg == "shell" for keyword in node.keywords):
                yield f"line {node.lineno}: a shell"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_of_the_package_runs_what_it_reads(file):
    assert list(findings(ast.parse(file.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load('x')",
        "yaml.load(text)",
        "eval(text)",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_it_would_be_found(code):
    assert list(findings(ast.parse(code)))


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "a b", "x\ny", "con/..", "-rm"])
def test_a_stage_cannot_name_a_place_outside_of_its_run(name):
    from rlhf_peft.errors import RecipeError
    from rlhf_peft.recipe import load

    stage = {"stage": "sft", "name": name, "dataset": {"name": "tiny", "part": "demonstrations"}}
    recipe = {"version": 1, "name": "r", "model": {"path": "builtin:tiny"}, "stages": [stage]}
    with pytest.raises(RecipeError, match="cannot name a stage"):
        load(recipe)
