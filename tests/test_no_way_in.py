"""Nothing that a user or a run folder holds is ever run: no pickles, no unsafe YAML, no code from data."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_peft
from rlhf_peft.errors import RunFolderError
from rlhf_peft.redact import scrub
from rlhf_peft.runs import RunFolder, verify_files

FILES = sorted(Path(rlhf_peft.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LISTENING = {"socketserver", "http.server", "xmlrpc.server", "wsgiref", "uvicorn", "flask"}
ASKED = {"labelling/serve.py": {"uvicorn"}}
"""Files that listen when a person asks for it: on 127.0.0.1, to whoever has the link (tests/labelling)."""
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


def findings(tree, allowed=()):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (
            f"line {node.lineno}: imports {name}"
            for name in names
            if name.split(".")[0] in MODULES or name in LISTENING.difference(allowed)
        )
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in CALLS:
                yield f"line {node.lineno}: calls {called}: {CALLS[called]}"
            if any(keyword.arg == "shell" for keyword in node.keywords):
                yield f"line {node.lineno}: a shell"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_of_the_package_runs_what_it_reads(file):
    allowed = ASKED.get(file.relative_to(Path(rlhf_peft.__file__).parent).as_posix(), ())
    assert list(findings(ast.parse(file.read_text(encoding="utf-8")), allowed)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import http.server",
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


LISTENER = """
import socket, sys
open_ = []

def bound(event, given):
    # urllib3 finds out whether there is IPv6 by binding a socket of this machine's own to any port, and closes it.
    if event == "socket.bind" and given[1][:2] != ("::1", 0):
        open_.append(given[1])

class Socket(socket.socket):
    def listen(self, *given):
        open_.append(self.getsockname())
        return super().listen(*given)

socket.socket = Socket
sys.addaudithook(bound)
from rlhf_peft.cli import execute
code = execute(sys.argv[1:])
assert not open_, f"listens on {open_}"
sys.exit(code)
"""


def written_recipe(folder):
    return (folder / "runs" / "r" / "recipe.yaml").read_text()


def test_a_run_listens_nowhere_and_writes_no_secret(tmp_path):
    (tmp_path / "rewards.py").write_text(
        "import os\n"
        "def brief(completions, **columns):\n"
        "    print('printed ' + os.environ['MY_TOKEN'], end='')\n"
        "    print('x' * 70000)\n"
        "    print('printed ' + os.environ['MY_TOKEN'])\n"
        "    return [-float(len(text)) for text in completions]\n"
        "def leaky(completions, **columns):\n"
        "    raise ValueError('no access with ' + os.environ['MY_TOKEN'])\n"
    )
    tiny = {"name": "tiny", "size": 8}
    recipe = {
        "version": 1,
        "name": "r",
        "output_dir": str(tmp_path / "runs"),
        "device": "cpu",
        "model": {"path": "builtin:tiny", "max_length": 64},
        "stages": [
            {
                "stage": "rl",
                "dataset": {**tiny, "part": "prompts"},
                "algorithm": {"name": "grpo", "num_generations": 2},
                "sampler": {"name": "cached", "max_new_tokens": 4},
                "rewards": [
                    {"name": "brief"},
                    {"name": "leaky", "on_error": "abstain"},
                    {
                        "name": "http",
                        "url": "http://127.0.0.1:9/?token=tttt9999",
                        "on_error": "abstain",
                    },
                ],
                "prompts_per_step": 4,
                "max_steps": 1,
            }
        ],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    secret = "environment-secret-0815"
    rewards = [f"--reward={tmp_path}/rewards.py:{name}" for name in ("brief", "leaky")]
    done = subprocess.run(
        [sys.executable, "-c", LISTENER, "run", str(tmp_path / "r.yaml"), *rewards],
        env={**os.environ, "MY_TOKEN": secret, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "no access with ***" in done.stderr and "http://127.0.0.1:9/?token=***" in written_recipe(tmp_path)
    written = "".join(
        file.read_text(errors="replace") for file in (tmp_path / "runs").rglob("*") if file.is_file()
    )
    for hidden in (secret, "tttt9999"):
        assert hidden not in written, hidden
        assert hidden not in done.stdout + done.stderr, hidden


@pytest.mark.parametrize("name", ["evil.py:run", "evil:run", "os:system", "./evil.py:run", "evil"])
@pytest.mark.parametrize("kind", ["rewards", "algorithm", "sampler", "dataset"])
def test_no_key_of_a_recipe_imports_code(tmp_path, monkeypatch, name, kind):
    from rlhf_peft.errors import RecipeError
    from rlhf_peft.recipe import load
    from rlhf_peft.registry import Registry

    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef run(*a, **k): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    stage = {
        "stage": "rl",
        "dataset": {"name": "tiny", "part": "prompts"},
        "algorithm": {"name": "ppo"},
        "sampler": {"name": "cached"},
        "rewards": [{"name": "tiny-gold"}],
    }
    stage[kind] = [{"name": name}] if kind == "rewards" else {"name": name}
    recipe = {"version": 1, "name": "r", "model": {"path": "builtin:tiny"}, "stages": [stage]}
    with pytest.raises(RecipeError):
        load(recipe, (), plugins=Registry.load(no_plugins=True))
    assert not (tmp_path / "ran").exists()


def test_what_counts_as_a_secret(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("HOME_DIRECTORY", "/home/somebody")
    text = "key 0123456789abcdef, abc, /home/somebody, Authorization: Bearer abcdefgh.1234, sk-abcdefghijklmnop1234"
    assert scrub(text) == "key ***, abc, /home/somebody, Authorization: Bearer ***, sk-***"
    assert scrub({"a": ["https://u:p@h/x"]}) == {"a": ["https://***@h/x"]}


@pytest.mark.parametrize("part", ["adapters", "checkpoints", "metrics.jsonl", "manifest.json"])
def test_a_link_inside_of_a_run_leads_nowhere(tmp_path, part):
    run = RunFolder.create(tmp_path / "runs", "r")
    run.append_metrics("sft", 1, {"loss": 1.0})
    run.finish("done")
    outside = tmp_path / "outside"
    target = run.path / part
    if part.endswith(("jsonl", "json")):
        target.rename(outside)
    else:
        outside.mkdir()
    target.symlink_to(outside)
    before = outside.stat().st_mtime_ns
    with pytest.raises(RunFolderError, match=f"{part}: a link that leads out of the run"):
        RunFolder.resume(tmp_path / "runs", "r")
    RunFolder.create(tmp_path / "runs", "r", overwrite=True).release()
    assert not target.is_symlink()
    assert outside.exists() and outside.stat().st_mtime_ns == before


def test_a_link_deeper_down_leads_nowhere_either(tmp_path):
    run = RunFolder.create(tmp_path / "runs", "r")
    run.adapter_dir("policy")
    run.finish("done")
    (tmp_path / "outside").write_text("x")
    (run.path / "adapters" / "policy" / "adapter_model.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(RunFolderError, match=r"adapter_model\.safetensors: a link"):
        RunFolder.resume(tmp_path / "runs", "r")


@pytest.mark.parametrize("secret", ["sk-abcdefgh12345678", "* odd: 'one\nof' two lines", "&anchor: [x]"])
def test_a_recipe_stays_a_recipe_without_its_secrets(tmp_path, monkeypatch, secret):
    import yaml

    monkeypatch.setenv("MY_API_KEY", secret)
    run = RunFolder.create(tmp_path, "r")
    run.write_recipe(yaml.safe_dump({"name": "r", "key": secret, "text": f"with {secret}"}))
    text = (run.path / "recipe.yaml").read_text()
    assert yaml.safe_load(text) == {"name": "r", "key": "***", "text": "with ***"}


def test_a_manifest_that_names_files_elsewhere_is_found_out(tmp_path):
    run = RunFolder.create(tmp_path / "runs", "r")
    run.finish("done")
    (tmp_path / "elsewhere").write_text("x")
    run.update_manifest(artifacts={"../../elsewhere": "0" * 64})
    wrong = {check.what: check.wrong for check in verify_files(run.path)}
    assert "leads out of the run" in wrong["../../elsewhere"]


@pytest.mark.parametrize("name", ["../sft-1", "/etc", "sft-1/..", ""])
def test_a_checkpoint_is_named_not_found_by_path(tmp_path, name):
    from rlhf_peft.runs import Checkpoints

    with pytest.raises(RunFolderError, match="not a checkpoint"):
        Checkpoints(tmp_path).read(name)
