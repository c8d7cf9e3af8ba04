"""The report: one file with everything in it, nothing from elsewhere, and no text of a model taken for HTML."""

import json
import re
from html.parser import HTMLParser

import pytest

from rlhf_peft.analysis.answers import answers, repeats
from rlhf_peft.analysis.report import _curves, report, wrong_pairs
from rlhf_peft.runs import History, RunFolder


class Page(HTMLParser):
    """Tags with their attributes, and the text of the data script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.data, self._in_data = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_data = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self._in_data = False

    def handle_data(self, data):
        if self._in_data:
            self.data += data


def test_everything_is_in_one_file(make_run):
    page = Page(report([make_run("one")]))
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name, "") or ""
            assert value.startswith(("#", "data:")) or value == "", (tag, value)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"summary", "stage-rm", "stage-rl", "answers", "recipe", "list", "search", "sort"} <= ids
    titles = [a.get("aria-label") for tag, a in page.tags if tag == "svg"]
    assert {
        "Reward",
        "KL to the reference",
        "Reward against KL",
        "Calibration",
        "Rewards before and after",
    } <= set(titles)
    assert not re.search(r"https?://(?!www\.w3\.org)", "".join(str(a) for _, a in page.tags))


def test_answers_stand_beside_those_before(make_run):
    run = make_run("one")
    found = answers(run, "rl")
    assert len(found) == 5 and {a.finish for a in found} == {"eos", "length"}
    first = found[0]
    assert first.before == "answer 0 of step 0" and first.after == "answer 0 of step 8"
    assert (first.score_before, first.score) == (0.0, pytest.approx(-0.8))
    assert found[2].repeats == pytest.approx(2 / 3) and repeats([]) == 0.0


def test_a_prompt_that_is_asked_twice_has_two_answers(make_run):
    run = make_run("one")
    again = [
        dict(row, completion=f"{row['completion']}, again")
        for row in run.samples
        if row.get("split") == "eval"
    ]
    twice = [
        row for step in (0, 4, 8) for rows in (run.samples, again) for row in rows if row.get("step") == step
    ]
    run.__dict__["samples"] = [row for row in twice if row.get("split") == "eval"]
    found = answers(run, "rl")
    assert len(found) == 10
    assert [(a.before.endswith("again"), a.after.endswith("again")) for a in found] == [(False,) * 2] * 5 + [
        (True,) * 2
    ] * 5


def test_the_pairs_that_a_reward_model_gets_wrong(make_run):
    found = wrong_pairs([make_run("one")], "rm")
    assert [row["row"] for row in found] == [11, 9, 7, 5, 3, 1] and found[0]["run"] == "one"
    assert "Pair 11?" in report([make_run("two")])


def test_a_pair_of_which_people_preferred_the_second_is_shown_so(make_run):
    run = make_run("one")
    rows = [row for row in run.samples if row.get("split") == "pairs"]
    odd = {"margin": 2.0, "label": 0.2, "chosen": "theirs", "rejected": "ours"}
    run.__dict__["samples"] = [{**rows[0], **odd}, {**rows[1], "margin": None}]
    (row,) = wrong_pairs([run], "rm")
    assert (row["chosen"], row["rejected"], row["margin"], row["label"]) == ("ours", "theirs", -2.0, 0.8)
    report([run])


def test_text_of_a_model_is_no_html(make_run):
    text = report([make_run("one")])
    assert "Say 0 </script>" not in text
    listed = json.loads(Page(text).data)
    assert listed[0]["prompt"] == "Say 0 </script> & more"


def test_several_runs_overlay(make_run):
    text = report([make_run("one"), make_run("two", slope=0.2)])
    assert {answer["run"] for answer in json.loads(Page(text).data)} == {"one", "two"}
    assert text.count("one sampled") >= 1 and text.count("two sampled") >= 1


def test_a_run_that_has_hardly_begun(tmp_path):
    from rlhf_peft.recipe import dump, load
    from rlhf_peft.runs import History

    run = RunFolder.create(tmp_path, "r")
    run.write_recipe(dump(load("quickstart")))
    text = report([History.of(run.path)])
    assert "running" in text and 'id="answers"' not in text


def test_every_head_of_an_ensemble_has_curves_of_its_own(make_run):
    run = make_run("one")
    folder = RunFolder(run.path)
    for head in (0, 1):
        for step in range(1, 4):
            held = {f"eval/reward-{head}/loss": 0.6, f"eval/reward-{head}/accuracy": 0.7} if step == 3 else {}
            figures = {"loss": 0.7 - 0.1 * step, "accuracy": 0.5, "head": float(head), **held}
            folder.append_metrics("rm", 3 * head + step, figures)
    (drawn,) = _curves([History.of(run.path)], "rm", {"loss": "training", "eval/*loss": "held out"})
    assert set(drawn) == {
        "training reward-0",
        "training reward-1",
        "held out",
        "held out reward-0",
        "held out reward-1",
    }
    assert drawn["training reward-1"].x == [4, 5, 6]
    text = report([History.of(run.path)])
    assert "training reward-1" in text and "held out reward-0" in text


def test_a_single_reward_model_has_one_curve(make_run):
    (drawn,) = _curves([make_run("one")], "rm", {"loss": "training", "eval/*loss": "held out"})
    assert set(drawn) == {"training", "held out"}
