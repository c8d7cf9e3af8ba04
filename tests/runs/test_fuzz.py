"""Whatever stands in a run folder's files, reading them ends well or with an error of ours."""

import contextlib
import json

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlhf_peft.errors import RlhfPeftError, RunFolderError
from rlhf_peft.runs import Checkpoints, RunFolder, read_manifest, read_metrics, read_samples, verify_files
from rlhf_peft.runs.manifest import FORMAT

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["version", "status", "artifacts", "stages_done", "versions", "code", "resumed", "name"]
)


def everything_is_read(folder):
    for read in (read_manifest, lambda f: list(verify_files(f)), lambda f: list(read_metrics(f))):
        try:
            read(folder)
        except RlhfPeftError as error:
            assert str(folder) in str(error)
    with contextlib.suppress(RunFolderError):
        RunFolder.resume(folder.parent, folder.name).release()


@FUZZ
@given(changes=st.dictionaries(KEYS, JSON_LIKE, max_size=3))
@example(changes={"artifacts": {"../../etc/passwd": "x"}})
@example(changes={"artifacts": {"recipe.yaml": 3}})
@example(changes={"artifacts": {"\x00": "x"}})
@example(changes={"resumed": 3})
def test_manifests(tmp_path, changes):
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    (run / "manifest.json").write_text(json.dumps({"format": FORMAT, "version": 1, **changes}))
    everything_is_read(run)


@FUZZ
@given(data=st.binary(max_size=60))
@example(data=b"[" * 100_000)
@example(data=b"null")
def test_any_bytes(tmp_path, data):
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    for name in ("manifest.json", "metrics.jsonl", "samples.jsonl"):
        (run / name).write_bytes(data)
    everything_is_read(run)
    for read in (read_metrics, read_samples):
        try:
            list(read(run))
        except RlhfPeftError as error:
            assert "jsonl" in str(error)


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), cut=st.booleans())
def test_no_bit_of_a_checkpoint_is_damaged_unseen(tmp_path, place, bits, cut):
    checkpoints = Checkpoints(tmp_path)
    info = {"stage": "rl", "step": 3, "lines": {"metrics.jsonl": 120}, "stages": [], "begun": None}

    def fill(folder):
        (folder / "state.json").write_text('{"a": 1.5}')

    for name in ("rl-2", "rl-3"):
        checkpoints.save(name, info, fill)
    before = checkpoints.read("rl-3").info
    for name in ("checkpoint.json", "state.json"):
        path = tmp_path / "checkpoints" / "rl-3" / name
        whole = path.read_bytes()
        data = bytearray(whole)
        at = int(place * len(data))
        data[at] ^= bits
        path.write_bytes(data[:at] if cut else data)
        checkpoint, wrong = checkpoints.newest()
        assert bool(wrong) is (checkpoint is None or checkpoint.name == "rl-2")
        # Blanks between what JSON says may be others.
        if checkpoint is None or checkpoint.name != "rl-2":
            assert name == "checkpoint.json" and checkpoint is not None and checkpoint.info == before
        path.write_bytes(whole)
    assert checkpoints.read("rl-3").info == before
