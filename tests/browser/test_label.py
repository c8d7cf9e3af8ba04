"""The labelling page in a browser, from the first click to a reward model that was trained on what was said."""

import re

import pytest

from rlhf_peft import api
from rlhf_peft.labelling.app import swapped
from rlhf_peft.labelling.files import write_rows
from rlhf_peft.labelling.results import preferences
from rlhf_peft.labelling.store import Pair, Store
from rlhf_peft.recipe import load
from rlhf_peft.registry import Registry

from .conftest import WIDTHS, fits
from .support import Served, served


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "labels.db")
    made.add(
        [
            Pair(
                [{"role": "user", "content": f"Tell me about the {thing}."}],
                f"The {thing} is happy.",
                f"A {thing}? Go away!",
            )
            for thing in ("fox", "bear", "duck", "frog", "owl", "hare", "peach", "star")
        ]
    )
    return made


@pytest.fixture
def link(store):
    with served(store) as server:
        yield server.link


def judged(page, count):
    from playwright.sync_api import expect

    expect(page.locator("#progress")).to_have_text(re.compile(f"^{count} of"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits(open_page, picture, link, width, scheme):
    page = open_page(f"{link}?annotator=ann", WIDTHS[width], scheme)
    judged(page, 0)
    assert fits(page) and page.locator("#left span").inner_text()
    picture(page, f"label-{width}-{scheme}")


def test_a_name_is_kept_where_the_page_comes_from_another_port(open_page, store):
    with served(store) as first, served(store) as second:
        assert first.link != second.link
        page = open_page(first.link)
        page.fill("#name", "Zoë; b=c")
        page.click("#who button")
        judged(page, 0)
        page.goto(second.link)
        assert page.input_value("#name") == "Zoë; b=c"


def test_instructions_are_shown_as_text(open_page, store):
    store.instructions = "Choose what is <b>kinder</b>.\nNot what is longer."
    with served(store) as server:
        page = open_page(server.link)
        assert page.inner_text("#instructions p") == "Choose what is <b>kinder</b>.\nNot what is longer."


def test_from_the_first_click_to_a_reward_model(open_page, link, store, tmp_path):
    page = open_page(link)
    page.fill("#name", "ann")
    page.click("#who button")
    judged(page, 0)
    # Notes are typed without judging.
    page.keyboard.press("n")
    page.keyboard.type("1 is kinder")
    page.keyboard.press("Enter")
    assert store.judgements() == []
    done = 0
    while page.locator("#work").is_visible():
        kind = "left" if "happy" in page.locator("#left span").inner_text() else "right"
        if done == 1:
            page.click(f"#{kind}")
        else:
            page.keyboard.press("ArrowLeft" if kind == "left" else "ArrowRight")
        done += 1
        judged(page, done)
    assert page.locator("#end").is_visible() and done == 8
    said = store.judgements()
    assert [j.choice for j in said] == ["a"] * 8 and said[0].note == "1 is kinder" and said[0].seconds > 0
    assert len({swapped("ann", pair.id) for pair in store.pairs()}) == 2
    # One back, and another word for it.
    page.keyboard.press("u")
    judged(page, 7)
    page.keyboard.press("ArrowUp")
    judged(page, 8)
    assert [j.choice for j in store.judgements()].count("tie") == 1
    # What was said trains a reward model.
    file = tmp_path / "preferences.jsonl"
    write_rows(preferences(store.pairs(), store.judgements()), file)
    stage = {
        "stage": "reward_model",
        "dataset": {"path": str(file)},
        "batch_size": 7,
        "max_steps": 30,
        "learning_rate": 3e-3,
    }
    recipe = load(
        {
            "version": 1,
            "name": "from-labels",
            "output_dir": str(tmp_path / "runs"),
            "device": "cpu",
            "model": {"path": "builtin:tiny", "max_length": 64},
            "lora": {"r": 4},
            "stages": [stage],
        },
        (),
        plugins=Registry.load(no_plugins=True),
    )
    folder = api.run(recipe, registry=Registry.load(no_plugins=True)).folder
    from rlhf_peft.runs import History

    assert History.of(folder).last("reward_model")["accuracy"] == 1.0


def test_a_server_that_is_gone_is_told(chromium, store):
    server = Served(store)
    page = chromium.new_page()
    page.goto(f"{server.link}?annotator=ann")
    judged(page, 0)
    server.stop()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.locator("#problem").inner_text().startswith("Not saved")
    page.close()
