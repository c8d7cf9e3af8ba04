"""`label` at the command line: pairs come in, people judge, preferences go out."""

import json
import re
import shlex
import signal
import subprocess
import sys

import httpx
import pytest

from rlhf_peft.cli import execute
from rlhf_peft.labelling.files import from_file
from rlhf_peft.labelling.store import Pair, Store


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


@pytest.fixture
def judging(monkeypatch):
    """Instead of a server: two people who judge what they are shown, and Ctrl-C."""

    def serve(store, *, on_ready, among, **options):
        on_ready("http://127.0.0.1:1/token/")
        assert len(among or store.pairs()) == 4
        for who, choices in {"ann": "aabt", "bob": "abas"}.items():
            for number, letter in enumerate(choices, 1):
                store.judge(number, who, {"t": "tie", "s": "skip"}.get(letter, letter))
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_peft.labelling.serve.serve", serve)


def test_instructions_are_kept_with_the_judgements(pairs, judging):
    command = ["label", str(pairs), "--db", "j.db", "--no-open"]
    assert execute([*command, "--instructions", "Choose the kinder one."]) == 0
    assert execute(command) == 0
    assert Store(pairs.parent / "j.db").instructions == "Choose the kinder one."


@pytest.mark.usefixtures("judging")
def test_from_a_file_to_preferences(pairs, capsys):
    assert execute(["label", "pairs.jsonl", "--no-open"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "http://127.0.0.1:1/token/" and "4 new pairs, 4 in labels.db" in err
    assert "8 judgements by ann, bob" in out and "agree on 33% of 3 pairs, Cohen's kappa -0.50" in out
    assert execute(["label", "--export", "out.jsonl"]) == 0
    err = capsys.readouterr().err
    assert "out.jsonl: 1 preference; left out: 3 undecided (ties, or as many for each)" in err
    line = next(line for line in err.splitlines() if line.startswith("next: rlhf-peft run reward-model "))
    small = ["model.path=builtin:tiny", "model.max_length=128", "device=cpu"]
    rows = "".join(json.dumps({"prompt": f"p{i}", "chosen": "c", "rejected": "d"}) + "\n" for i in range(20))
    (pairs.parent / "out.jsonl").write_text(rows)
    assert execute(["validate", *shlex.split(line)[3:], "--data", *small]) == 0
    assert execute(["label", "--export", "out.jsonl"]) == 0
    (row,) = map(json.loads, (pairs.parent / "out.jsonl").read_text().splitlines())
    assert row == {
        "prompt": "p0",
        "chosen": "good 0",
        "rejected": "bad 0",
        "chosen_prob": 1.0,
        "annotators": 2,
        "notes": [],
    }
    capsys.readouterr()
    assert execute(["label", "--results", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"][0]["kappa"] == pytest.approx(-0.5)


def test_what_cannot_be_labelled_is_said(pairs, capsys):
    assert execute(["label", "--no-open"]) == 2
    assert (
        "labels.db: holds no pairs. Give a file of pairs, --run RUN or --compare RUN."
        in capsys.readouterr().err
    )
    assert execute(["label", "pairs.jsonl", "--run", "x"]) == 2
    assert "give one of PAIRS, --run and --compare" in capsys.readouterr().err
    (pairs.parent / "other.jsonl").write_text('{"question": "x"}\n')
    assert execute(["label", "other.jsonl"]) == 2
    assert (
        "found columns question. Pairs to label need prompt+chosen+rejected or prompt+a+b"
        in capsys.readouterr().err
    )
    assert execute(["label", "--export", "out.jsonl"]) == 2
    assert "no pair has been judged yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_the_server_lets_go_at_once_and_judgements_stay(pairs, number, code):
    command = [sys.executable, "-m", "rlhf_peft", "label", str(pairs), "--no-open", "--db", "x.db"]
    with subprocess.Popen(
        command, cwd=pairs.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        link = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", link)
        assert "Which answer is better?" in httpx.get(link).text
        assert httpx.get(link.rsplit("/", 2)[0] + "/guess/").status_code == 404
        judgement = {"annotator": "ann", "pair": 1, "choice": "tie"}
        assert httpx.post(f"{link}judge", json=judgement).json()["done"] == 1
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == code
    assert [(j.pair, j.choice) for j in Store(pairs.parent / "x.db").judgements()] == [(1, "tie")]


def test_conversations_and_implicit_prompts_come_from_files(tmp_path):
    def read(rows):
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return from_file(str(tmp_path / "x.jsonl"))

    user, yes, no = (
        {"role": r, "content": c} for r, c in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5"))
    )
    for row in (
        {"chosen": [user, yes], "rejected": [user, no]},
        {"prompt": [user], "chosen": [yes], "rejected": [no]},
    ):
        (pair,) = read([row])
        assert (pair.prompt, pair.a, pair.b, pair.from_a) == ([user], "4", "5", "chosen")
    (pair,) = read([{"prompt": "2+2?", "chosen": [user, yes], "rejected": [user, no]}])
    assert (pair.a, pair.b) == ("4", "5")
    (pair,) = read([{"prompt": "2+2?", "a": "4", "b": "5"}, {"prompt": "x", "a": None, "b": "5"}])
    assert (pair.prompt, pair.a, pair.b, pair.from_a) == ("2+2?", "4", "5", "a")


def test_many_annotators_are_summed_up(tmp_path, capsys):
    store = Store(tmp_path / "x.db")
    store.add([Pair(f"p{i}", "good", "bad") for i in range(3)])
    for who in range(58):
        for pair in (1, 2, 3):
            store.judge(pair, f"ann-{who:02d}", "a" if who % 2 or pair < 3 else "b")
    assert execute(["label", "--db", str(tmp_path / "x.db"), "--results"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("174 judgements by ann-00, ") and lines[0].endswith("ann-09 and 48 more")
    assert lines[-1].startswith("all 1,653 pairs of people") and "agree on 83%" in lines[-1]
