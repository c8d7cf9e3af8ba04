"""`vllm_server` says clearly what is wrong with a server that refuses, is gone or is set up in another way."""

import threading
import time
from pathlib import Path

import pytest

from rlhf_peft.builtin.samplers.vllm_server import VllmServerOptions, VllmServerSampler
from rlhf_peft.plugin import SamplerError

from .support import ModelView
from .vllm_support import COMPLETE, LOAD, MODELS, UNLOAD, asked


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


def test_an_absent_server_is_named_without_credentials(make, server):
    host = server.url.removeprefix("http://")
    server.failures[MODELS] = [(401, "who are you")] * 3
    with pytest.raises(SamplerError) as caught:
        make(url=f"http://anna:secret@{host}")
    assert f"http://{host}/v1/models: status 401: who are you" in str(caught.value)
    assert "anna" not in str(caught.value) and "secret" not in str(caught.value)
    with pytest.raises(
        SamplerError, match=r"sampler vllm_server: http://127.0.0.1:9/v1/models .*ConnectError"
    ):
        make(url="http://anna:secret@127.0.0.1:9", retries=1)


def test_a_slow_server_runs_out_of_time(make, server):
    sampler = make(timeout=0.2, retries=0)
    with server.lock, pytest.raises(SamplerError, match=r"did not end within 0\.2 seconds"):
        sampler.sample(asked(1))


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
    ("status", "message", "remedy"),
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
def test_the_remedy_fits_what_the_server_says(make, server, status, message, remedy):
    server.failures[LOAD] = [(status, {"error": {"message": message}} if message != "Not Found" else message)]
    with pytest.raises(SamplerError, match=remedy) as caught:
        make()
    others = ["started without --enable-lora", "at least lora.r", "by this very path", "api_key_env"]
    assert sum(other in str(caught.value) for other in others) <= 1


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
