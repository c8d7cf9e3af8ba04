"""`runs`, `report` and `doctor` as a user meets them."""

import json
import os

import pytest

from rlhf_peft import doctor
from rlhf_peft.cli import execute
from rlhf_peft.doctor import machine, versions
from rlhf_peft.dryrun import shim

from ..analysis.conftest import make_run  # noqa: F401 (a fixture)
from ..children import with_full_disk


def test_runs_are_listed_and_shown(make_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    make_run("one"), make_run("two", seed=2)
    monkeypatch.chdir(tmp_path)
    assert execute(["runs", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed] == ["one", "two"] and listed[0]["stages"] == "2 of 2"
    assert execute(["runs", "list"]) == 0
    assert "done" in capsys.readouterr().out
    assert execute(["runs", "show", "one"]) == 0
    assert "eval/accuracy" in capsys.readouterr().out
    assert execute(["runs", "list", "--dir", "nowhere"]) == 0
    assert "rlhf-peft run quickstart" in capsys.readouterr().err


def test_compare_writes_a_table_a_csv_and_a_figure(make_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    make_run("a"), make_run("b", seed=2), make_run("c", seed=3, algorithm="grpo")
    monkeypatch.chdir(tmp_path)
    assert (
        execute(
            [
                "runs",
                "compare",
                "a",
                "b",
                "c",
                "--by",
                "stages.rl.algorithm.name",
                "--csv",
                "o.csv",
                "--pdf",
                "o.pdf",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "ppo" in out and "grpo" in out and "they also differ" not in out
    assert (tmp_path / "o.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "o.csv").exists()
    assert execute(["runs", "compare", "a", "c"]) == 0
    assert 'they also differ in stages.rl.algorithm.name: "ppo", "grpo"' in capsys.readouterr().out
    assert execute(["runs", "compare", "a", "--x", "days"]) == 2


def test_a_run_is_removed_but_not_what_is_not_its_own(make_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    run = make_run("one")
    (run.path / "mine.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert execute(["runs", "rm", "one"]) == 2
    assert "Say --yes" in capsys.readouterr().err
    assert execute(["runs", "rm", "one", "--yes"]) == 0
    assert [path.name for path in run.path.iterdir()] == ["mine.txt"]
    two = make_run("two")
    assert execute(["runs", "rm", "two", "--yes"]) == 0
    assert not two.path.exists()


def test_a_report_is_written_into_the_run(make_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    run = make_run("one")
    monkeypatch.chdir(tmp_path)
    assert execute(["report"]) == 0
    assert capsys.readouterr().out.strip().endswith("runs/one/report.html")
    assert (run.path / "report.html").stat().st_size > 50_000
    assert execute(["report", "one", "-o", "r.html"]) == 0 and (tmp_path / "r.html").exists()


def test_the_doctor_looks_at_everything(capsys):
    assert execute(["doctor", "--json"]) == 0
    findings = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert {
        "rlhf-peft",
        "memory",
        "quantizer nf4",
        "quantizer int8",
        "dry run",
        "disk here",
        "hub",
        "plugins",
    } <= set(findings)
    assert "torch" in findings or "torch " in findings["versions"]["found"]  # newer than tested
    assert findings["quantizer nf4"]["state"] == "ok"
    assert execute(["doctor"]) == 0
    assert "quantizer nf4: forward and backward" in capsys.readouterr().out


def test_the_doctor_tells_what_is_broken(monkeypatch, capsys):

    def broken():
        raise ImportError("libcuda.so.1: cannot open shared object file")
        yield

    monkeypatch.setattr(doctor, "check_quantization", broken)
    assert execute(["doctor"]) == 1
    assert "wrong  broken: ImportError: libcuda.so.1" in capsys.readouterr().out


def test_the_doctor_tells_whether_a_dry_run_is_possible(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    (finding,) = machine.check_dry_run()
    assert (finding.what, finding.state) == ("dry run", "note")
    assert "needs a C++ compiler" in finding.detail and "Install one" in finding.detail

    monkeypatch.setattr(shim, "library", lambda: tmp_path / "shim.so")
    (finding,) = machine.check_dry_run()
    assert finding.state == "ok" and "the C++ compiler builds the shim" in finding.detail
    assert not shim._loaded  # A process with the shim would take itself for one with a card.


@pytest.fixture
def with_versions(monkeypatch):
    """Some packages in other versions than they are, or not there at all."""
    own = versions._version

    def make(**changed):
        monkeypatch.setattr(versions, "_version", lambda name: changed.get(name, own(name)))
        return {finding.what: finding for finding in doctor.checks(no_plugins=True)}

    return make


def test_the_doctor_compares_versions_with_those_that_were_tested(with_versions):
    newest = versions.tested()
    assert newest["torch"] and newest["transformers"] and newest["ruff"]
    findings = with_versions(transformers="5.999.0", peft="0.1.0", rich=None)
    assert findings["versions"].state == "note"
    assert f"transformers 5.999.0 ({newest['transformers']})" in findings["versions"].detail
    for name, there, command in (
        ("peft", "0.1.0, and <1,>=", "pip install 'peft<1,>="),
        ("rich", "is not installed", "pip install 'rich<"),
    ):
        assert findings[name].state == "wrong" and findings[name].detail.startswith(there)
        assert findings[name].remedy.startswith(command)


def test_the_doctor_notes_what_is_newer_than_the_bounds(with_versions):
    findings = with_versions(torch="2.99.0")["torch"]
    assert findings.state == "note" and findings.detail.startswith("2.99.0 was never tried: <")
    assert findings.remedy.startswith("pip install 'torch<")


def test_the_doctor_takes_another_build_of_what_was_tested_for_tested(with_versions):
    newest = versions.tested()["torch"]
    findings = with_versions(torch=f"{newest}+cu130")
    assert findings["torch"].state == "ok" and "torch" not in getattr(findings.get("versions"), "detail", "")


def test_the_doctor_names_combinations_that_are_bad(with_versions, monkeypatch):
    monkeypatch.setattr(
        versions.importlib.metadata,
        "requires",
        lambda name, own=versions.importlib.metadata.requires: (
            ["numpy", "torch==2.1.0"] if name == "torchvision" else own(name)
        ),
    )
    findings = with_versions(torchvision="0.16.0", kernels="0.12.0")
    assert (
        findings["torchvision"].state == "wrong"
        and "built for torch==2.1.0" in findings["torchvision"].detail
    )
    assert findings["combination"].state == "note" and "kernels 0.12.0" in findings["combination"].detail
    assert "torchvision" not in with_versions(torchvision=None) and "combination" not in with_versions()


@pytest.fixture(autouse=True)
def no_color(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def test_a_damaged_run_hides_no_other(make_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    make_run("one")
    (make_run("two").path / "recipe.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    assert execute(["runs", "list", "--json"]) == 0
    listed = {row["name"]: row["status"] for row in json.loads(capsys.readouterr().out)}
    assert listed == {"one": "done", "two": "damaged"}
    assert execute(["runs", "list"]) == 0 and "damaged" in capsys.readouterr().out


def test_few_seeds_are_called_few(make_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    make_run("a"), make_run("b", seed=2)
    monkeypatch.chdir(tmp_path)
    assert execute(["runs", "compare", "a", "b", "--by", "lora.r"]) == 0
    assert "note: a bootstrap over 2 runs is too narrow" in capsys.readouterr().out


def test_an_old_report_stays_when_the_disk_is_full(make_run, tmp_path, monkeypatch, capfd):  # noqa: F811
    make_run("one")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.html").write_text("the old one")
    assert with_full_disk(lambda: execute(["report", "one", "-o", "r.html"]), most=10_000) == 1
    assert (tmp_path / "r.html").read_text() == "the old one"
    assert sorted(os.listdir(tmp_path)) == ["r.html", "runs"]
    message = capfd.readouterr().err
    assert "r.html" in message and "unexpected" not in message
    for option, name in (("--csv", "c.csv"), ("--pdf", "c.pdf")):
        (tmp_path / name).write_text("the old one")
        assert (
            with_full_disk(lambda o=option, n=name: execute(["runs", "compare", "one", o, n]), most=20) == 1
        )
        assert (tmp_path / name).read_text() == "the old one"


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a file system that takes no files")
def test_where_nothing_can_be_written_that_is_said(make_run, tmp_path, monkeypatch, capsys):  # noqa: F811
    make_run("one")
    monkeypatch.chdir(tmp_path)
    assert execute(["report", "one", "-o", "/sys/kernel/r.html"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: /sys/kernel/r.html: ") and "unexpected" not in message
    assert message.rstrip().endswith(
        ("Name another place to write to, or change its permissions.", "Look at the path.")
    )
