"""The page's server: one link, this machine alone, and nothing that says what wrote which answer."""

import pytest
from starlette.testclient import TestClient

from rlhf_peft.labelling.app import make_app, swapped
from rlhf_peft.labelling.store import Pair, Store

TOKEN = "the-token"


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "labels.db")
    made.add([Pair(f"p{i}", f"good {i}", f"bad {i}", "policy", "reference") for i in range(8)])
    return made


@pytest.fixture
def client(store):
    return TestClient(make_app(store, TOKEN), base_url="http://127.0.0.1:1234")


def test_the_link_alone_lets_in(client, store):
    assert client.get(f"/{TOKEN}/").status_code == 200
    for path in ("/", "/other/", "/other/next?annotator=x", "/the-toke/"):
        assert client.get(path).status_code == 404
    assert (
        TestClient(make_app(store, TOKEN), base_url="http://evil.example").get(f"/{TOKEN}/").status_code
        == 400
    )


def test_another_page_cannot_post(client):
    said = {"annotator": "ann", "pair": 1, "choice": "left"}
    assert client.post(f"/{TOKEN}/judge", data=said).status_code == 400
    policy = client.get(f"/{TOKEN}/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


def test_choices_are_of_the_answer_that_stood_there(client, store):
    sides = set()
    shown = client.get(f"/{TOKEN}/next", params={"annotator": "ann"}).json()
    while shown["pair"] is not None:
        assert set(shown) == {"pair", "prompt", "left", "right", "done", "all"}
        side = "left" if shown["left"].startswith("good") else "right"
        assert swapped("ann", shown["pair"]) is (side == "right")
        sides.add(side)
        said = {"annotator": "ann", "pair": shown["pair"], "choice": side, "note": "fine", "seconds": 1.5}
        shown = client.post(f"/{TOKEN}/judge", json=said).json()
    assert sides == {"left", "right"}
    assert [j.choice for j in store.judgements()] == ["a"] * 8 and store.judgements()[0].note == "fine"


def test_at_the_end_people_see_how_far_they_agree(client, store):
    for number in range(1, 9):
        store.judge(number, "ann", "a"), store.judge(number, "bob", "a" if number > 2 else "b")
    shown = client.get(f"/{TOKEN}/next", params={"annotator": "ann"}).json()
    assert shown["pair"] is None and shown["agreement"] == [
        {"with": "bob", "pairs": 8, "agreed": 0.75, "kappa": 0.0}
    ]


def test_undo_shows_the_pair_again(client):
    first = client.get(f"/{TOKEN}/next", params={"annotator": "ann"}).json()
    client.post(
        f"/{TOKEN}/judge", json={"annotator": "ann", "pair": first["pair"], "choice": "tie", "note": "n"}
    )
    back = client.post(f"/{TOKEN}/undo", json={"annotator": "ann"}).json()
    assert back["pair"] == first["pair"] and back["note"] == "n" and back["done"] == 0


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"annotator": "ann"},
        {"annotator": "", "pair": 1, "choice": "left"},
        {"annotator": "ann", "pair": 99, "choice": "left"},
        {"annotator": "ann", "pair": 1, "choice": "best"},
        {"annotator": "ann", "pair": "x", "choice": "left"},
        [],
        {"annotator": "ann", "pair": 1e23, "choice": "left"},
        {"annotator": "ann", "pair": 10**30, "choice": "left"},
        {"annotator": "ann", "pair": -1, "choice": "left"},
        {"annotator": "ann", "pair": 1.5, "choice": "left"},
        {"annotator": "ann", "pair": True, "choice": "left"},
        {"annotator": "ann", "pair": "1", "choice": "left"},
        {"annotator": "ann", "pair": 1, "choice": "left", "seconds": 1e300},
        {"annotator": "ann", "pair": 1, "choice": "left", "seconds": -1},
        {"annotator": "ann", "pair": 1, "choice": "left", "seconds": "x"},
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(client, store, said):
    assert client.post(f"/{TOKEN}/judge", json=said).status_code == 400
    assert store.judgements() == []


@pytest.mark.parametrize(
    "text",
    [
        '{"annotator": "ann", "pair": Infinity, "choice": "left"}',
        '{"annotator": "ann", "pair": 1, "choice": "left", "seconds": NaN}',
        '{"annotator": "ann", "pair": 1, "choice": "left", "seconds": 1e999}',
        '{"annotator": "ann", "pair": ' + "9" * 5000 + ', "choice": "left"}',
        "[" * 100_000,
        '{"a":' * 30_000,
        "\xff",
        "",
    ],
)
@pytest.mark.parametrize("path", ["judge", "undo"])
def test_json_that_is_none_is_refused(client, store, path, text):
    sent = client.post(
        f"/{TOKEN}/{path}", content=text.encode("latin-1"), headers={"content-type": "application/json"}
    )
    assert sent.status_code in (
        (400,) if path == "judge" or not text.startswith('{"annotator"') else (200, 400)
    )
    assert store.judgements() == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["judge", "undo"])
def test_a_large_body_is_refused_before_it_is_read(client, path, chunked):
    read = []

    def body():
        for _ in range(200):
            read.append(1)
            yield b"x" * 2**16

    headers = {"content-type": "application/json"}
    if not chunked:
        headers["content-length"] = str(200 * 2**16)
    seen = client.post(f"/{TOKEN}/{path}", content=body() if chunked else b"x" * 200 * 2**16, headers=headers)
    assert seen.status_code == 413
    note = {"annotator": "ann", "pair": 1, "choice": "left", "note": "\U0001f600" * 10_000}
    assert client.post(f"/{TOKEN}/judge", json=note).status_code == 200


def test_a_real_server_reads_no_more_of_a_large_body(store):
    """Over a socket: the answer comes though almost nothing of the body was sent."""
    import socket
    import threading

    import uvicorn

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(uvicorn.Config(make_app(store, TOKEN), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        with socket.create_connection(listening.getsockname(), timeout=10) as client:
            head = f"POST /{TOKEN}/judge HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: 200000000\r\n\r\n{{".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 413")
    finally:
        server.should_exit = True
        thread.join(10)
