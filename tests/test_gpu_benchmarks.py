"""The benchmarks of a GPU, tried on the CPU: a case that fails or takes too long does not stop the others."""

import json

import pytest

from tests.benchmarks.gpu.cases import CASES, Case
from tests.benchmarks.gpu.driver import Options, chosen, measure
from tests.benchmarks.gpu.render import read, render

STUB = """
import json, os, sys, time
print("MACHINE", json.dumps({"device": "a card", "memory": 2**33, "torch": "2"}), flush=True)
for case in json.loads(sys.argv[1])["cases"]:
    print("BEGIN", case["name"], flush=True)
    if case["work"] == "sleep":
        time.sleep(60)
    if case["work"] == "die":
        os.write(2, b"no kernel image is available"), os._exit(9)
    found = {"error": "ValueError: no"} if case["work"] == "raise" else {"figures": {"seconds": 1.5}}
    print("RESULT", json.dumps(found), flush=True)
    if "error" in found:
        sys.exit(1)
"""


def case(name, work, limit=60.0):
    return Case(name, work, 3, limit)


def test_what_fails_does_not_stop_the_others(tmp_path, capsys):
    done = CASES[-2]
    cases = [case("a", "raise"), case("b", "sleep", 0.5), case("c", "die"), done, case("d", "ppo")]
    out = tmp_path / "out" / "lines.jsonl"
    measure(cases, Options(out, "cpu", "full", 120, tmp_path, ("-c", STUB)))
    with out.open("a") as file:
        file.write('{"case": "cut o')
    machines, found = read(out)
    assert list(found) == [each.name for each in cases]
    assert found["a"]["error"] == "ValueError: no"
    assert found["b"]["error"] == "it took longer than 0.5 s"
    assert found["c"]["error"] == "the process ended with 9"
    assert found["c"]["stderr"] == ["no kernel image is available"]
    assert found[done.name]["figures"] == found["d"]["figures"] == {"seconds": 1.5}
    assert capsys.readouterr().out.count("\n") == len(cases)

    table = render(machines, found).splitlines()
    assert table[1].endswith("; a card, 8 GB; torch 2.")  # Once, for all processes.
    assert table[-1] == f"| {done.name} | 1.5 s |  |  |" and len(table) == 6


@pytest.mark.slow
def test_the_code_of_the_cases_runs_on_small_models(tmp_path):
    out = tmp_path / "lines.jsonl"
    measure(CASES, Options(out, "cpu", "toy", 900, tmp_path / "models"))
    machines, found = read(out)
    assert [line.get("error") for line in found.values()] == [None] * len(CASES)
    table = render(machines, found)
    assert f"| {CASES[1].name} (toy) | {found[CASES[1].name]['figures']['tokens/s']:,.0f} tokens/s |" in table
    assert " times ours |" in table and "% of the copy bandwidth" in table


def test_cases_that_there_is_no_time_for_say_so(tmp_path):
    out = tmp_path / "lines.jsonl"
    measure(chosen("GRPO"), Options(out, "cpu", "toy", 1, tmp_path))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["error"] for line in lines] == ["not begun: the time for all cases was over"] * 2
    failed = render(*read(out)).splitlines()[4]
    assert failed == f"| {lines[0]['case']} (toy) | **failed** | {lines[0]['error']} | |"


def test_cases_have_names_of_their_own_and_parts_fit_into_a_call():
    assert len({case.name for case in CASES}) == len(CASES)
    assert [case.part for case in CASES] == sorted(case.part for case in CASES)
    assert CASES[-1].work == "trl_grpo" and chosen("8B", 3) == [CASES[-2]]
