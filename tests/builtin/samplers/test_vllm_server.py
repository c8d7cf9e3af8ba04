"""`vllm_server` asks a server that works: its requests, its adapters, its options."""

from pathlib import Path

import pytest
import torch

from rlhf_peft.builtin.samplers.vllm_server import VllmServerOptions, VllmServerSampler, finish
from rlhf_peft.plugin import Request, SamplerError, SamplingParams, UsageError

from .stub import EOS
from .support import ModelView, completions
from .vllm_support import COMPLETE, LOAD, MODELS, UNLOAD, asked


def test_rows_come_back_in_their_order_with_tokens_logps_and_finish(make):
    rollout = make().sample(asked())
    assert completions(rollout)[:3] == [[EOS], [21, EOS], [22, 23, EOS]]
    assert rollout.finish == ["eos", "eos", "eos", "length", "length", "eos"]
    assert rollout.sampler_logps[2].tolist() == [0, 0, 0, -0.5, -1.5, -2.5]
    assert rollout.input_ids[2].tolist() == [5, 6, 9, 22, 23, EOS]
    assert rollout.action_mask[2].tolist() == [False] * 3 + [True] * 3
    assert (rollout.version, rollout.tag, rollout.group.tolist()) == (
        5,
        [f"t{i}" for i in range(6)],
        [0, 0, 1, 1, 2, 2],
    )


def test_the_payload_says_all_of_it(make, server):
    sampler = make()
    params = {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "min_p": 0.02, "stop": ("x", "yz")}
    sampler.sample([Request(torch.tensor([5, 6]), 0, 2**63 + 9, SamplingParams(8, **params))])
    probe, row = server.of(COMPLETE)
    assert probe["top_k"] == 1 and probe["max_tokens"] == 1
    assert row == {
        "model": server.adapters[0],
        "prompt": [5, 6],
        "n": 1,
        "seed": 9,
        "max_tokens": 8,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 30,
        "min_p": 0.02,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [EOS],
        "logprobs": 0,
        "return_token_ids": True,
        "stop": ["x", "yz"],
        "include_stop_str_in_output": True,
    }


def test_max_tokens_ends_at_the_context(make, server):
    sampler = make()
    sampler.sample([Request(torch.ones(62, dtype=torch.int64), 0, 1, SamplingParams(50))])
    assert server.of(COMPLETE)[0]["max_tokens"] == 2
    with pytest.raises(SamplerError, match="no room"):
        sampler.sample([Request(torch.ones(64, dtype=torch.int64), 0, 1, SamplingParams(50))])


def test_each_sync_pushes_a_new_name_and_drops_the_old(make, server, tmp_path):
    sampler = make(folder=str(tmp_path / "adapters"))
    first = server.adapters[0]
    sampler.sync(ModelView(None), 5)
    sampler.sync(ModelView(None), 6)
    loads, unloads = server.of(LOAD), server.of(UNLOAD)
    assert len({load["lora_name"] for load in loads}) == 3 and len(server.adapters) == 1
    assert [u["lora_name"] for u in unloads] == [load["lora_name"] for load in loads[:2]]
    assert not Path(loads[0]["lora_path"]).exists() and Path(loads[2]["lora_path"]).is_dir()
    assert Path(loads[2]["lora_path"]).is_relative_to(tmp_path / "adapters") and first != server.adapters[0]
    sampler.sample(asked(1))
    assert server.of(COMPLETE)[0]["model"] == loads[2]["lora_name"]
    sampler.close()
    assert server.adapters == [] and list((tmp_path / "adapters").iterdir()) == []
    with pytest.raises(SamplerError, match="before sync"):
        sampler.sample(asked(1))


def test_a_busy_server_is_asked_again(make, server):
    server.failures[LOAD] = [(503, "loading")]
    server.failures[COMPLETE] = [(429, "slow down"), (502, "oops")]
    assert len(make().sample(asked(3))) == 3
    assert len(server.of(LOAD)) == 2 and len(server.of(COMPLETE)) == 5


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "//"])
def test_the_url_may_end_as_it_likes(make, server, end):
    assert len(make(url=server.url + end).sample(asked(1))) == 1
    assert {path for path, _, _ in server.asked} == {MODELS, LOAD, COMPLETE}


def test_the_key_comes_from_the_environment(make, server, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UsageError, match="environment variable MY_KEY is not set"):
        make(api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "sesame")
    make(api_key_env="MY_KEY")
    assert {headers["Authorization"] for _, _, headers in server.asked} == {"Bearer sesame"}
    server.failures[LOAD] = [(403, "no")]
    with pytest.raises(SamplerError) as caught:
        make(api_key_env="MY_KEY")
    assert "sesame" not in str(caught.value)


def test_a_key_and_a_password_are_one_too_many(make, server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    with pytest.raises(UsageError, match="url has a user and password"):
        make(url=server.url.replace("//", "//anna:secret@"), api_key_env="MY_KEY")


def test_finish_words():
    assert finish([4, EOS], "stop", frozenset({EOS})) == "eos"
    assert finish([4, EOS], "length", frozenset({EOS})) == "eos"
    assert finish([4, 5], "stop", frozenset({EOS})) == "stop"
    assert finish([4, 5], "length", frozenset({EOS})) == "length"


def test_the_url_must_be_one():
    with pytest.raises(ValueError, match="pattern"):
        VllmServerOptions(url="localhost:8000")
    for url in ("http://", "http://localhost:99999999", "http://localhost:8000/v1?key=1"):
        with pytest.raises(ValueError, match=r"Write it like http://localhost:8000"):
            VllmServerOptions(url=url)


def test_it_promises_no_row_seeds():
    assert VllmServerSampler(VllmServerOptions()).provides == {"logps", "on_policy"}
    assert VllmServerSampler(VllmServerOptions(top_k=3)).provides == {"logps"}
