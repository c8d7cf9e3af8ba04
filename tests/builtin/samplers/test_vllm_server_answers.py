"""`vllm_server` refuses answers that are cut off, too slow, too long, or no completions."""

import gzip
import time

import pytest

from rlhf_peft.plugin import SamplerError

from .vllm_support import COMPLETE, asked


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
    ("answer", "message"),
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
def test_answers_that_are_cut_off_slow_or_nonsense_are_told(make, server, answer, message):
    sampler = make(timeout=0.3, retries=0)
    server.raw[COMPLETE] = answer
    begun = time.monotonic()
    with pytest.raises(SamplerError, match=f"sampler vllm_server: .*/v1/completions: .*{message}"):
        sampler.sample(asked(1))
    assert time.monotonic() - begun < 5


def test_an_answer_may_be_as_long_as_what_was_asked_for(make, server):
    sampler = make(retries=0, timeout=20)
    server.failures[COMPLETE] = [(200, "x" * 3_000_000)]
    with pytest.raises(SamplerError, match=r"more than 1,052,672 bytes"):
        sampler.sample(asked(1))


def change(**values):
    return lambda answer: {"choices": [{**answer["choices"][0], **values}]}


@pytest.mark.parametrize(
    ("answer", "message"),
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
def test_answers_that_are_no_completions_are_refused(make, server, answer, message):
    sampler = make()
    server.change = answer
    with pytest.raises(SamplerError, match=f"sampler vllm_server: {server.url}/v1/completions: .*{message}"):
        sampler.sample(asked(1))
