"""Takes the pictures of the README: `python -m tests.browser.pictures RUN`, with Chromium installed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from rlhf_peft.analysis.answers import answers
from rlhf_peft.analysis.report import report
from rlhf_peft.labelling.store import Pair, Store
from rlhf_peft.runs import History

from .conftest import ARGUMENTS, CHROMIUM
from .support import served

FOLDER = Path(__file__).parent / "pictures"
COLOURS = 64


def pairs_of(run: History) -> list[Pair]:
    """The held-out answers of a run, before and after."""
    found = [
        answer for answer in answers(run, list(run.kinds)[-1]) if answer.before not in (None, answer.after)
    ]
    said = [{"role": "user"}]
    return [
        Pair([{**said[0], "content": a.prompt}], a.after, str(a.before), "policy", "reference") for a in found
    ]


def keep(page: Any, name: str, **options: Any) -> None:
    """Write a picture, with few colours."""
    file = FOLDER / f"{name}.png"
    page.screenshot(path=file, **options)
    Image.open(file).convert("RGB").quantize(COLOURS).save(file, optimize=True)


def main(run: History) -> None:
    """All of them."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = Path(folder) / "report.html"
        page_file.write_text(report([run]), encoding="utf-8")
        store = Store(Path(folder) / "labels.db")
        store.add(pairs_of(run))
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        desk = browser.new_page(viewport={"width": 1280, "height": 860})
        desk.goto(page_file.as_uri())
        keep(desk, "report")
        keep(desk, "report-rl", clip=desk.locator("#stage-rl").bounding_box(), full_page=True)
        box = desk.locator("#answers").bounding_box()
        keep(desk, "report-answers", clip={**box, "height": 620}, full_page=True)
        phone = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        phone.goto(page_file.as_uri())
        phone.evaluate("document.querySelector('#answers').scrollIntoView()")
        keep(phone, "report-phone")
        with served(store) as server:
            desk.goto(f"{server.link}?annotator=ann")
            desk.wait_for_selector("#work:not([hidden])")
            keep(desk, "label", clip={"x": 0, "y": 0, "width": 1280, "height": 340})
        browser.close()


if __name__ == "__main__":
    main(History.of(Path(sys.argv[1])))
