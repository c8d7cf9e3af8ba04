import gzip
import time

import pytest

from rlhf_peft.builtin.rewards.http import HttpOptions, HttpReward
from rlhf_peft.kit.functions import SomeRowsFailed
from rlhf_peft.plugin import RewardError, UsageError

from .doubles import batch, chats, score


def reward(stub, **options):
    return HttpReward(HttpOptions(url=f"{stub.url}/score", **{"backoff": 0.0, **options}))


def lengths(body):
    return 200, {"scores": [float(len(text)) for text in body["completions"]]}


def test_rows_go_in_batches_with_the_columns_asked_for(serve):
    stub = serve(lengths)
    given = batch(completions=["a", "bb", "ccc"], columns={"answer": [1, 2, 3], "other": [4, 5, 6]})
    out = score(reward(stub, batch_size=2, columns=["answer"], concurrency=1), given)
    assert out.row.tolist() == [1.0, 2.0, 3.0]
    assert stub.bodies == [
        {"answer": [1, 2], "prompts": ["p", "p"], "completions": ["a", "bb"]},
        {"answer": [3], "prompts": ["p"], "completions": ["ccc"]},
    ]
    assert set(stub.paths) == {"/score"}


def test_one_row_a_request_and_null_abstains(serve):
    stub = serve(lambda body: (200, {"score": None if body["completion"] == "b" else 2}))
    out = score(reward(stub, mode="row", concurrency=1), batch(completions=["a", "b"]))
    assert out.row[0] == 2.0 and out.row[1].isnan()
    assert stub.bodies[0] == {"prompt": "p", "completion": "a"}


def test_messages_are_sent_as_they_are(serve):
    stub = serve(lambda body: (200, {"scores": [1.0]}))
    score(reward(stub), batch(completions=chats("a"), prompts=[[{"role": "user", "content": "q"}]]))
    assert stub.bodies[0]["completions"] == [[{"role": "assistant", "content": "a"}]]


def test_a_busy_server_is_asked_again(serve):
    answers = iter([(503, "busy"), (429, "slow down"), (200, {"scores": [1.0]})])
    stub = serve(lambda body: next(answers))
    assert score(reward(stub, retries=2), batch(completions=["a"])).row.tolist() == [1.0]
    assert len(stub.bodies) == 3


def test_a_refusal_is_final_and_shows_no_secret(serve, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "Bearer s3cret")
    stub = serve(lambda body: (401, "wrong key s3cret"))
    with pytest.raises(RewardError, match=r"answered 401: wrong key \*\*\*") as told:
        score(reward(stub, header_env={"Authorization": "REWARD_TOKEN"}), batch(completions=["a"]))
    assert len(stub.bodies) == 1 and stub.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(told.value)


def test_a_secret_that_is_not_set_is_said_before_anything_runs(serve, monkeypatch):
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    with pytest.raises(UsageError, match="export REWARD_TOKEN"):
        HttpReward(HttpOptions(url="http://x/", header_env={"Authorization": "REWARD_TOKEN"}))


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://me:pw@host/"])
def test_only_plain_urls(url):
    with pytest.raises(ValueError, match=r"expected a URL|environment variable"):
        HttpOptions(url=url)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"scores": [1.0]}, "1 scores for 3 completions"),
        ({"score": 1.0}, "no scores for 3 completions"),
        ({"scores": [1.0, "x", 2.0]}, "'x', which is no finite number"),
        ({"scores": [1.0, True, 2.0]}, "True, which is no finite number"),
        ("[1, NaN, 2]", "nan, which is no finite number"),
        ("oops", "no JSON: oops"),
    ],
)
def test_an_answer_that_is_none_is_an_error(serve, answer, message):
    with pytest.raises(RewardError, match=message):
        score(reward(serve(lambda body: (200, answer)), retries=0), batch())


def test_a_server_that_does_not_answer_in_time(serve):

    stub = serve(lambda body: (time.sleep(0.5), (200, {"scores": [1.0]}))[1])
    with pytest.raises(RewardError, match=r"did not answer within 0\.1 s \(2 attempts\)"):
        score(reward(stub, request_timeout=0.1, retries=1), batch(completions=["a"]))


def send(*parts, pause=0.0):
    """What the server writes by itself: bytes, one part after the other."""

    def write(handler):
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()
            time.sleep(pause)

    return write


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            send(OK, b"Content-Length: 9000\r\n\r\n", *[b" "] * 60, pause=0.05),
            r"did not answer within 0\.5 s",
        ),
        (send(OK, *[b"X: y\r\n"] * 60, pause=0.05), r"did not answer within 0\.5 s"),
        (send(OK, b"\r\n", *[b" " * 2**20] * 200), "more than [0-9,]+ bytes"),
        (send(OK, b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"1" * 10**7)), "compressed by gzip"),
        (send(OK, b"Content-Length: 99\r\n\r\n[1"), "cannot be reached: RemoteProtocolError"),
        (send(b"\x00\xffnothing of HTTP\r\n\r\n"), "cannot be reached: RemoteProtocolError"),
        (send(OK, b"\r\n", b"[" * 200_000), "no JSON"),
        (
            send(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/x\r\n\r\n"),
            r"answered 302, and points to http://169\.254\.169\.254/x\. Set url to where the server is",
        ),
    ],
)
def test_an_answer_is_bounded_in_time_and_size(serve, raw, message):
    stub = serve(lambda body: (200, {"scores": [1.0]}))
    stub.raw = raw
    begun = time.monotonic()
    with pytest.raises(RewardError, match=rf"reward http: {stub.url}/score .*{message}"):
        score(reward(stub, request_timeout=0.5, retries=0), batch(completions=["a"]))
    assert time.monotonic() - begun < 5


def test_nobody_there():
    with pytest.raises(RewardError, match="cannot be reached: ConnectError"):
        score(HttpReward(HttpOptions(url="http://127.0.0.1:9/", retries=0)), batch(completions=["a"]))


def test_rows_that_were_answered_keep_their_scores(serve):
    stub = serve(lambda body: (400, "bad") if body["completion"] == "b" else (200, {"score": 1.0}))
    with pytest.raises(SomeRowsFailed) as failed:
        score(reward(stub, mode="row"), batch(completions=["a", "b", "c"]))
    row = failed.value.scores.row
    assert failed.value.row == 1 and row[0] == row[2] == 1.0 and row[1].isnan()


def test_a_missing_column(serve):
    with pytest.raises(RewardError, match="no column answer"):
        score(reward(serve(lengths), columns=["answer"]), batch())
