"""The report in a browser: it renders, searches, sorts, and fits a phone."""

import pytest

from rlhf_peft.analysis.report import report

from ..analysis.conftest import make_run  # noqa: F401 (a fixture)
from .conftest import WIDTHS, fits


@pytest.fixture
def link(make_run, tmp_path):  # noqa: F811
    file = tmp_path / "report.html"
    file.write_text(report([make_run("one")]), encoding="utf-8")
    return file.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_has_its_colours(open_page, picture, link, width, scheme):
    page = open_page(link, WIDTHS[width], scheme)
    assert fits(page)
    assert page.locator("figure svg").count() >= 10
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    ink = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert ink == ("rgb(27, 31, 36)" if scheme == "light" else "rgb(230, 232, 234)")
    picture(page, f"report-{width}-{scheme}")


def test_answers_are_searched_and_sorted(open_page, link):
    page = open_page(link)
    cards = page.locator("#list li")
    assert cards.count() == 5 and page.locator("#count").inner_text() == "5 of 5 answers"
    page.fill("#search", "say 3")
    assert cards.count() == 1 and "Say 3 </script> & more" in cards.first.inner_text()
    page.fill("#search", "")
    page.select_option("#sort", "score-up")
    assert "Say 0" in cards.first.inner_text()
    page.select_option("#sort", "repeats-down")
    assert "yes yes yes yes" in cards.first.inner_text()
    page.check("#unfinished")
    assert cards.count() == 1 and "no end" in cards.first.inner_text()
