"""Runs against a server: training leaves nothing behind, evaluation works, and an absent server is said first."""

import json
import tempfile
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlhf_peft import api
from rlhf_peft.cli import execute
from rlhf_peft.engine import BaseSpec
from rlhf_peft.errors import SamplerError
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry
from tests.builtin.samplers.stub import StubServer

from .conftest import TINY


class LoraServer(StubServer):
    """A server of builtin:tiny that decodes through the adapters which it is given."""

    def __init__(self):
        super().__init__()
        self.base = AutoModelForCausalLM.from_pretrained(BaseSpec("builtin:tiny").location)

    def load(self, payload):
        answer = super().load(payload)
        if isinstance(self.base, PeftModel):
            self.base.load_adapter(payload["lora_path"], payload["lora_name"])
        else:
            self.base = PeftModel.from_pretrained(
                self.base, payload["lora_path"], adapter_name=payload["lora_name"]
            )
        self.model = self.base.eval()
        return answer

    def complete(self, payload):
        self.base.set_adapter(payload["model"])
        return super().complete(payload)


@pytest.fixture
def server():
    stub = LoraServer()
    yield stub
    stub.close()


def recipe(folder, url, **stage):
    return load(
        {
            "version": 1,
            "name": "served",
            "output_dir": str(folder / "runs"),
            "device": "cpu",
            "model": {"path": "builtin:tiny", "max_length": 64},
            "lora": {"r": 4, "alpha": 8},
            "stages": [
                {
                    "stage": "rl",
                    "dataset": {**TINY, "part": "prompts"},
                    "algorithm": {"name": "grpo", "num_generations": 2},
                    "sampler": {
                        "name": "vllm_server",
                        "url": url,
                        "max_new_tokens": 4,
                        "folder": str(folder / "adapters"),
                    },
                    "rewards": [{"name": "length", "max": 3}],
                    "prompts_per_step": 2,
                    "max_steps": 2,
                    "eval": {"dataset": {**TINY, "part": "prompts", "questions": "test", "size": 2}},
                    **stage,
                }
            ],
        },
        (),
        plugins=Registry.load(no_plugins=True),
    )


def left(folder, server):
    return server.adapters, list((folder / "adapters").iterdir())


def test_a_run_on_a_server_leaves_nothing_and_is_evaluated_against_the_raw_base(server, tmp_path, capsys):
    run = api.run(recipe(tmp_path, server.url), registry=Registry.load(no_plugins=True)).folder
    assert left(tmp_path, server) == ([], [])
    assert execute(["eval", str(run), "--size", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["tokens"]["reference"] > 0
    assert left(tmp_path, server) == ([], [])


def test_any_run_is_evaluated_on_a_server(trained, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked = f"{{name: vllm_server, url: {server.url}/v1}}"
    assert execute(["eval", str(trained), "--size", "2", "--sampler", asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 2
    payloads = server.of("/v1/completions")
    assert payloads[-1]["max_tokens"] == 16 and server.adapters == []
    assert list(tmp_path.glob("rlhf-peft-*")) == []


@pytest.mark.parametrize("text", ["nonsense", "[1]", "{url: x}"])
def test_a_sampler_that_cannot_be_read_is_refused(trained, capsys, text):
    assert execute(["eval", str(trained), "--sampler", text]) == 2
    assert "sampler" in capsys.readouterr().err


@pytest.mark.parametrize("ends", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_where_a_run_fails_or_is_interrupted(server, tmp_path, monkeypatch, ends):
    seen = []

    def draw(payload):
        seen.append(list(server.adapters))
        if len(seen) > 12:
            return {"choices": "nonsense"}
        return StubServer.draw(server, payload)

    monkeypatch.setattr(server, "draw", draw)
    registry = Registry.load(no_plugins=True)
    if ends is KeyboardInterrupt:
        given = recipe(tmp_path, server.url, max_steps=3)
        monkeypatch.setattr(
            "rlhf_peft.stages.rl.collapse.CollapseGuard.check", lambda *args: (_ for _ in ()).throw(ends())
        )
        monkeypatch.setattr(server, "draw", lambda payload: StubServer.draw(server, payload))
        with pytest.raises(KeyboardInterrupt):
            api.run(given, registry=registry)
    else:
        with pytest.raises(SamplerError, match="no token_ids with logprobs"):
            api.run(recipe(tmp_path, server.url), registry=registry)
    assert len(server.of("/v1/load_lora_adapter")) > 0
    assert left(tmp_path, server) == ([], [])


def test_an_absent_server_is_said_before_the_model_is_loaded(tmp_path, capsys):
    asked = recipe(tmp_path, "http://127.0.0.1:9")
    asked = asked.model_copy(
        update={"model": asked.model.model_copy(update={"path": str(tmp_path / "none")})}
    )
    with pytest.raises(SamplerError, match=r"127.0.0.1:9/v1/models: .*No server listens there"):
        api.run(asked, registry=Registry.load(no_plugins=True))
    assert not Path(asked.run_folder).exists()


def test_an_absent_server_is_said_before_a_run_is_loaded(trained, capsys, monkeypatch):
    monkeypatch.setattr("rlhf_peft.trained.opened.load_base", lambda *args, **options: pytest.fail("loaded"))
    asked = "{name: vllm_server, url: 'http://127.0.0.1:9'}"
    assert execute(["eval", str(trained), "--sampler", asked]) == 1
    assert "No server listens there" in capsys.readouterr().err
