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
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(client, store, said):
    assert client.post(f"/{TOKEN}/judge", json=said).status_code == 400
    assert store.judgements() == []
