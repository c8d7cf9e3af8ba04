"""No call of ours is deprecated by another library: the early warning of what its next release takes away.

Where a new release of a library makes this test red, mend the line that it names; what cannot be mended yet goes into
`KNOWN`, with the version in which it breaks.
"""

import json
import subprocess
import sys
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from trl import SFTConfig

from rlhf_peft.builtin.samplers.cached import CachedSampler
from rlhf_peft.engine.compat import argument_name, cache_keyword
from rlhf_peft.kit.sampling import LocalOptions
from rlhf_peft.plugin import Request, SamplingParams
from tests.blame import ROOT, Blame
from tests.builtin.samplers.support import ModelView
from tests.engine.support import config
from tests.upstream import CANARY, Collector

KNOWN: dict[tuple[str, str], str] = {}
"""(our file, how the warning begins) to the version of the library in which the call no longer works."""


@pytest.fixture(scope="module")
def warned(tmp_path_factory):
    """What other libraries warn of while every stage, sampler and export takes its shortest path."""
    folder = tmp_path_factory.mktemp("upstream")
    command = [sys.executable, "-W", "always", "-m", "tests.upstream", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [Blame(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith('{"file"')]


def test_no_call_of_ours_is_deprecated(warned):
    heard = [made for made in warned if made.by == CANARY]
    assert [made.file for made in heard] == ["tests/upstream.py"], "warnings were not heard to the end"
    ours = [made for made in warned if made.file is not None and made not in heard]
    new = [made for made in ours if not any(made.file == f and made.text.startswith(t) for f, t in KNOWN)]
    assert not new, "these calls of ours are deprecated:\n" + "\n".join(f"  {made}" for made in new)


@pytest.mark.skipif(
    cache_keyword(LlamaForCausalLM) != "cache", reason="this transformers has not renamed it yet"
)
def test_the_old_name_of_the_cache_is_found_with_its_line(monkeypatch):
    monkeypatch.setattr("rlhf_peft.engine.decoding.cache_keyword", lambda model: "past_key_values")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config("llama")).eval().requires_grad_(False)
    sampler, collector = CachedSampler(LocalOptions(max_new_tokens=2)), Collector()
    sampler.sync(ModelView(model), 0)
    with warnings.catch_warnings():
        collector.listen()
        try:
            sampler.sample([Request(torch.tensor([5, 6]), 0, 1, SamplingParams(2))])
        finally:
            collector.forget()
    # What a library does of itself, such as a first import, has no file.
    (made,) = {made.file: made for made in collector.found.values() if made.file is not None}.values()
    lines = (ROOT / made.file).read_text().splitlines()
    assert made.file == "rlhf_peft/engine/decoding.py" and "cache_keyword(model)" in "".join(
        lines[made.line - 1 : made.line + 8]
    )
    assert (
        f"decoding.py:{made.line}: transformers warns: FutureWarning: `past_key_values` is deprecated"
        in str(made)
    )


RENAMED = (
    argument_name(SFTConfig, "activation_checkpointing", "gradient_checkpointing")
    == "activation_checkpointing"
)


@pytest.mark.skipif(not RENAMED, reason="this transformers has not renamed it yet")
def test_an_old_argument_that_a_configuration_hands_on_is_found_with_its_line(tmp_path):
    collector = Collector()
    with warnings.catch_warnings():
        collector.listen()
        try:
            SFTConfig(output_dir=str(tmp_path), gradient_checkpointing=True, report_to="none", use_cpu=True)
        finally:
            collector.forget()
    files = [made.file for made in collector.found.values() if "gradient_checkpointing" in made.text]
    assert files == ["tests/test_upstream.py"]
