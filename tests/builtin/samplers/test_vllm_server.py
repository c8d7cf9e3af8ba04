"""`vllm_server` asks a server what it should, and tells clearly what goes wrong."""

import gzip
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_peft.builtin.samplers.vllm_server import VllmServerOptions, VllmServerSampler, finish
from rlhf_peft.kit.http import client as http
from rlhf_peft.plugin import Request, SamplerError, SamplingParams, UsageError

from .stub import EOS, StubServer
from .support import ModelView, completions

LOAD, UNLOAD, COMPLETE, MODELS = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/completions",
    "/v1/models",
)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(http, "BACKOFF", 0.001)
    stub = StubServer()
    yield stub
    stub.close()


@pytest.fixture
def make(server):
    """Samplers on the stub, synced once unless told otherwise, closed at the end."""
    open_ones = []

    def make(sync=True, **options):
        sampler = VllmServerSampler(
            VllmServerOptions(**{"url": server.url, "retries": 2, "check_base": False, **options})
        )
        open_ones.append(sampler)
        if sync:
            sampler.sync(ModelView(None), 5)
        return sampler

    yield make
    server.failures.clear()
    for sampler in open_ones:
        sampler.close()


def asked(count=6, **params):
    params = SamplingParams(**{"max_new_tokens": 4, **params})
    return [Request(torch.tensor([5, 6, 7 + i]), i // 2, 100 + i, params, tag=f"t{i}") for i in range(count)]


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


def test_it_gives_up_after_its_retries(make, server):
    sampler = make()
    server.failures[COMPLETE] = [(503, "still loading")] * 3
    with pytest.raises(SamplerError, match=r"/v1/completions \(try 3\): status 503: still loading"):
        sampler.sample(asked(1))
    assert len(server.of(COMPLETE)) == 3


@pytest.mark.parametrize("status", [400, 500])
def test_what_is_wrong_is_not_asked_again(make, server, status):
    sampler = make()
    server.failures[COMPLETE] = [(status, "max_tokens too large")]
    with pytest.raises(SamplerError, match=f"status {status}: max_tokens too large"):
        sampler.sample(asked(1))
    assert len(server.of(COMPLETE)) == 1


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "//"])
def test_the_url_may_end_as_it_likes(make, server, end):
    assert len(make(url=server.url + end).sample(asked(1))) == 1
    assert {path for path, _, _ in server.asked} == {MODELS, LOAD, COMPLETE}


def test_an_absent_server_is_named_without_credentials(make, server):
    host = server.url.removeprefix("http://")
    server.failures[MODELS] = [(401, "who are you")] * 3
    with pytest.raises(SamplerError) as told:
        make(url=f"http://anna:secret@{host}")
    assert f"http://{host}/v1/models: status 401: who are you" in str(told.value)
    assert "anna" not in str(told.value) and "secret" not in str(told.value)
    with pytest.raises(
        SamplerError, match=r"sampler vllm_server: http://127.0.0.1:9/v1/models .*ConnectError"
    ):
        make(url="http://anna:secret@127.0.0.1:9", retries=1)


def test_a_slow_server_runs_out_of_time(make, server):
    sampler = make(timeout=0.2, retries=0)
    with server.lock, pytest.raises(SamplerError, match=r"did not end within 0\.2 seconds"):
        sampler.sample(asked(1))


def test_the_key_comes_from_the_environment(make, server, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UsageError, match="environment variable MY_KEY is not set"):
        make(api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "sesame")
    make(api_key_env="MY_KEY")
    assert {headers["Authorization"] for _, _, headers in server.asked} == {"Bearer sesame"}
    server.failures[LOAD] = [(403, "no")]
    with pytest.raises(SamplerError) as told:
        make(api_key_env="MY_KEY")
    assert "sesame" not in str(told.value)


def test_a_key_and_a_password_are_one_too_many(make, server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    with pytest.raises(UsageError, match="url has a user and password"):
        make(url=server.url.replace("//", "//anna:secret@"), api_key_env="MY_KEY")


def test_a_server_that_takes_no_adapters_is_refused_with_the_command(make, server):
    server.failures[LOAD] = [(404, "Not Found")]
    with pytest.raises(SamplerError, match=r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True .*--enable-lora"):
        make()


def test_an_old_trl_server_is_refused(make, server):
    server.failures[MODELS] = [(404, '{"detail":"Not Found"}')]
    with pytest.raises(
        SamplerError, match=r"not vLLM's own server\. An old one of TRL takes no adapter by path"
    ):
        make()
    assert server.of(LOAD) == []


def test_a_path_that_the_server_does_not_see_is_told(make, server, monkeypatch):
    monkeypatch.setattr(ModelView, "save_adapter", lambda self, folder: None)
    with pytest.raises(SamplerError, match=r"No adapter found .*must see .*sampler.folder"):
        make()


def test_a_load_that_came_through_unseen_counts(make, server):
    real = server.load

    def lose_the_answer(payload):
        server.load = real
        real(payload)
        return 502, "gateway"

    server.load = lose_the_answer
    assert len(make().sample(asked(2))) == 2


def test_a_server_started_anew_is_no_trouble_to_unload_from(make, server):
    sampler = make()
    server.adapters.clear()
    server.failures[UNLOAD] = [(404, "The lora adapter cannot be found.")]
    sampler.sync(ModelView(None), 6)
    assert len(server.adapters) == 1


def test_closing_survives_a_server_that_is_gone(make, server, caplog):
    sampler = make(retries=0)
    folder = Path(server.of(LOAD)[0]["lora_path"])
    server.failures[UNLOAD] = [(500, "dying")]
    sampler.close()
    assert "the server keeps an adapter" in caplog.text and not folder.exists()


@pytest.mark.parametrize("params", [{"temperature": 0.7}, {"top_p": 0.9}])
def test_raw_logprobs_are_refused_where_they_would_be_wrong(make, server, params):
    server.processed = False
    sampler = make()
    assert len(sampler.sample(asked(2))) == 2
    with pytest.raises(
        SamplerError, match=r"leave out temperature and truncation.*--logprobs-mode processed_logprobs"
    ):
        sampler.sample(asked(2, **params))
    server.processed = True
    sampler.sample(asked(2, **params))
    before = len(server.of(COMPLETE))
    sampler.sample(asked(2, **params))
    assert len(server.of(COMPLETE)) == before + 2  # one probe is enough


@pytest.mark.parametrize(
    ("status", "said", "remedy"),
    [
        (400, "LoRA is not enabled. Use `--enable-lora` to enable LoRA.", "started without --enable-lora"),
        (500, "RuntimeError: LoRA is not enabled.", "started without --enable-lora"),
        (400, "LoRA rank 64 is greater than max_lora_rank 16.", "--max-lora-rank of at least lora.r"),
        (404, "Loading lora x failed: No adapter found for /tmp/x", "must see .* by this very path"),
        (404, "Not Found", "does not take adapters at runtime"),
        (401, "Unauthorized", "sampler.api_key_env"),
        (403, "no", "sampler.api_key_env"),
    ],
)
def test_the_remedy_fits_what_the_server_says(make, server, status, said, remedy):
    server.failures[LOAD] = [(status, {"error": {"message": said}} if said != "Not Found" else said)]
    with pytest.raises(SamplerError, match=remedy) as told:
        make()
    others = ["started without --enable-lora", "at least lora.r", "by this very path", "api_key_env"]
    assert sum(other in str(told.value) for other in others) <= 1


def test_an_adapter_that_the_server_has_lost_is_said(make, server):
    sampler = make()
    server.adapters.clear()
    with pytest.raises(SamplerError, match=r"does not exist.*has lost the adapter.*--resume"):
        sampler.sample(asked(1))


def test_whether_the_server_is_there_can_be_asked_alone(server, monkeypatch):
    VllmServerSampler(VllmServerOptions(url=server.url)).ready()
    assert [path for path, _, _ in server.asked] == [MODELS]
    with pytest.raises(SamplerError, match=r"No server listens there\. Start it with .*sampler.name=cached"):
        VllmServerSampler(VllmServerOptions(url="http://127.0.0.1:9")).ready()
    server.failures[MODELS] = [(200, "<html>It works!</html>"), (200, {"data": None}), (200, "[]")]
    for _ in range(3):
        with pytest.raises(SamplerError, match="not vLLM's own server"):
            VllmServerSampler(VllmServerOptions(url=server.url)).ready()


def test_nothing_is_left_after_a_sync_that_failed_or_was_interrupted(make, server, tmp_path):
    sampler = make(sync=False, folder=str(tmp_path))

    def interrupted(payload):
        server.adapters.append(payload["lora_name"])
        return 500, "the engine died"

    server.load = interrupted
    with pytest.raises(SamplerError, match="the engine died"):
        sampler.sync(ModelView(None), 1)
    assert len(server.adapters) == 1
    sampler.close()
    assert server.adapters == [] and list(tmp_path.iterdir()) == []


def cut(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def not_gzip(handler):
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", "5")
    handler.end_headers()
    handler.wfile.write(b"hello")


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(100):
        handler.wfile.write(b"X: y\r\n")
        handler.wfile.flush()
        time.sleep(0.05)


def endless_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(10_000):
        handler.wfile.write(b"X: " + b"y" * 10_000 + b"\r\n")


def silent(handler):
    time.sleep(1)


def elsewhere(handler):
    handler.send_response(307)
    handler.send_header("Location", "http://me:hush@169.254.169.254/latest")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def bomb(handler):
    """Ten kilobytes that become ten megabytes."""
    body = gzip.compress(b" " * 10_000_000)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def endless(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def deep(handler):
    body = b"[" * 200_000
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def noise(handler):
    handler.wfile.write(b"\x00\xff\x13nothing of HTTP\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (cut, "without sending complete message body"),
        (drip, r"did not end within 0\.3 seconds"),
        (drip_headers, r"did not end within 0\.3 seconds"),
        (silent, r"did not end within 0\.3 seconds"),
        (endless_headers, "RemoteProtocolError"),
        (
            elsewhere,
            r"status 307, and points to http://.*169\.254\.169\.254/latest\. Set sampler\.url to where",
        ),
        (not_gzip, "compressed by gzip"),
        (bomb, "compressed by gzip"),
        (endless, "more than [0-9,]+ bytes"),
        (deep, "no token_ids with logprobs"),
        (noise, "RemoteProtocolError"),
    ],
)
def test_answers_that_are_cut_off_slow_or_nonsense_are_told(make, server, answer, told):
    sampler = make(timeout=0.3, retries=0)
    server.raw[COMPLETE] = answer
    begun = time.monotonic()
    with pytest.raises(SamplerError, match=f"sampler vllm_server: .*/v1/completions: .*{told}"):
        sampler.sample(asked(1))
    assert time.monotonic() - begun < 5


def test_an_answer_may_be_as_long_as_what_was_asked_for(make, server):
    sampler = make(retries=0, timeout=20)
    server.failures[COMPLETE] = [(200, "x" * 3_000_000)]
    with pytest.raises(SamplerError, match=r"more than 1,052,672 bytes"):
        sampler.sample(asked(1))


def test_whoever_gives_up_does_not_wait_for_answers(make, server):
    """One row fails at once, and the server has not answered the others, nor will it soon."""
    sampler = make(timeout=60, retries=0)
    first, lock = [], threading.Lock()

    def answer(handler):
        with lock:
            first.append(handler)
            mine = len(first)
        if mine > 1:
            time.sleep(8)
        time.sleep(0.3)
        handler.send_response(400)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.raw[COMPLETE] = answer
    begun = time.monotonic()
    with pytest.raises(SamplerError, match="status 400"):
        sampler.sample(asked(6))
    assert time.monotonic() - begun < 6
    server.raw.clear()
    assert len(sampler.sample(asked(2))) == 2


def tiny(seed, scale=1.0):
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=100,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def test_the_very_base_is_accepted_and_compared_once(make, server):
    server.model = tiny(0)
    sampler = make(sync=False, check_base=True)
    sampler.sync(ModelView(tiny(0)), 1)
    probes = len(server.of(COMPLETE))
    sampler.sync(ModelView(tiny(0)), 2)
    assert probes > 0 and len(server.of(COMPLETE)) == probes
    assert len(sampler.sample(asked(2))) == 2


def test_a_base_that_is_only_rounded_is_accepted(make, server):
    server.model = tiny(0, scale=20.0).to(torch.bfloat16)
    make(sync=False, check_base=True).sync(ModelView(tiny(0, scale=20.0)), 1)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_another_base_of_the_same_shape_is_refused(make, server, scale):
    server.model = tiny(1, scale)
    sampler = make(sync=False, check_base=True)
    with pytest.raises(SamplerError, match=r"nats a token .*another base than the recipe's model.path"):
        sampler.sync(ModelView(tiny(0, scale)), 1)
    sampler.close()
    assert server.adapters == []


def change(**values):
    return lambda answer: {"choices": [{**answer["choices"][0], **values}]}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda answer: {}, r"no token_ids with logprobs\. vLLM 0\.10\.2"),
        (lambda answer: "hello", "no token_ids with logprobs"),
        (change(token_ids=None), "no token_ids with logprobs"),
        (change(logprobs=None), "no token_ids with logprobs"),
        (
            change(token_ids=[5, 6, 7, 8, 9], logprobs={"token_logprobs": [0.0] * 5}),
            "5 tokens came where max_tokens was 4",
        ),
        (change(token_ids=[5, 6], logprobs={"token_logprobs": [0.0]}), "2 tokens with 1 log-probabilities"),
        (change(token_ids=[], logprobs={"token_logprobs": []}), "0 tokens with 0"),
        (change(token_ids=[-5], logprobs={"token_logprobs": [-1.0]}), "token ids from 0"),
        (
            change(token_ids=[100], logprobs={"token_logprobs": [-1.0]}),
            "token ids from 0 to 99 .*another base",
        ),
        (change(token_ids=[2**70], logprobs={"token_logprobs": [-1.0]}), "token ids from 0 to 99"),
        (change(token_ids=[1e999], logprobs={"token_logprobs": [-1.0]}), "no token_ids with logprobs"),
        (change(token_ids=[5.7], logprobs={"token_logprobs": [-1.0]}), "no token_ids with logprobs"),
        (change(token_ids=["5"], logprobs={"token_logprobs": [-1.0]}), "no token_ids with logprobs"),
        (change(token_ids=[True], logprobs={"token_logprobs": [-1.0]}), "no token_ids with logprobs"),
        (change(token_ids="5", logprobs={"token_logprobs": [-1.0]}), "no token_ids with logprobs"),
        (change(token_ids=[5], logprobs={"token_logprobs": ["-1.0"]}), "no token_ids with logprobs"),
        (change(token_ids=[5], logprobs={"token_logprobs": [None]}), "no token_ids with logprobs"),
        (change(token_ids=[5], logprobs={"token_logprobs": [-(10**400)]}), "at most 0 were expected"),
        (lambda answer: {"choices": answer["choices"] * 2}, "one choice was asked for, and 2 came"),
        (lambda answer: {"choices": []}, "one choice was asked for, and 0 came"),
        (lambda answer: {"choices": "ab"}, "no token_ids with logprobs"),
        (lambda answer: {"choices": {"0": answer["choices"][0]}}, "no token_ids with logprobs"),
        (lambda answer: [answer], "no token_ids with logprobs"),
        (lambda answer: None, "no token_ids with logprobs"),
        (lambda answer: 7, "no token_ids with logprobs"),
        (lambda answer: {"choices": [None]}, "no token_ids with logprobs"),
        (change(token_ids=[5], logprobs={"token_logprobs": [float("nan")]}), "at most 0 were expected"),
        (change(token_ids=[5], logprobs={"token_logprobs": [3.0]}), "at most 0 were expected"),
        (
            change(token_ids=[5], logprobs={"token_logprobs": [0.0]}, finish_reason="abort"),
            "finish_reason 'abort'",
        ),
    ],
)
def test_answers_that_are_no_completions_are_refused(make, server, answer, told):
    sampler = make()
    server.change = answer
    with pytest.raises(SamplerError, match=f"sampler vllm_server: {server.url}/v1/completions: .*{told}"):
        sampler.sample(asked(1))


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
