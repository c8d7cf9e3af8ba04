"""`python -m tests.benchmarks`: every contender on every case, one after the other, and the table of all of it.

TRL's last PPO is in an older release than the one this package stands on; it gets a virtual environment of its own,
made on the first run with the very versions of torch, transformers, peft and bitsandbytes that are used here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import simulated
from .cases import TABLE, Line, Run
from .gpu import driver
from .gpu import render as gpu_table

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
OTHER = ROOT / "build" / "benchmarks" / "trl-1.12"
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"


def main() -> None:
    """Run what is asked for, print the table, and put it into README.md."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="lines of the table that hold this text")
    parser.add_argument("--write", action="store_true", help="put the table into tests/benchmarks/README.md")
    parser.add_argument("--simulate", metavar="CARD", help="what a card would do by the dry run's roofline")
    gpu = parser.add_argument_group("on a GPU")
    gpu.add_argument("--gpu", action="store_true", help="the cases of a GPU, instead of the CPU's lines")
    gpu.add_argument("--out", type=Path, default=driver.OUT, help="file of JSON lines, one for each case")
    gpu.add_argument("--device", default="cuda", help="cuda, or cpu, which tries the code")
    gpu.add_argument(
        "--shape", choices=("full", "toy"), default="full", help="toy: the same code on small models"
    )
    gpu.add_argument("--seconds", type=float, default=1500, help="for all cases together")
    gpu.add_argument("--part", type=int, choices=(2, 3), help="2: decoding and micro-steps, 3: whole steps")
    gpu.add_argument("--models", type=Path, default=driver.MODELS, help="folder of the models, 20 GB")
    gpu.add_argument("--render", action="store_true", help="measure nothing, and show the table of --out")
    given = parser.parse_args()
    if given.gpu:
        on_a_gpu(given)
        return
    if given.simulate:
        simulated_table = simulated.table(given.simulate, given.only)
        print(simulated_table)
        if given.write:
            write("simulated", simulated_table)
        return
    lines = [line for line in TABLE if given.only.lower() in line.what.lower()]
    begun = time.perf_counter()
    found: dict[Run, dict[str, Any]] = {}
    for line in lines:
        found |= in_turn([run for run in line.runs if run not in found])
    table = render(lines, found, time.perf_counter() - begun)
    print(table)
    if given.write:
        write("cpu", table)


def on_a_gpu(given: argparse.Namespace) -> None:
    """Measure the cases of a GPU, and show the table."""
    if not given.render:
        if given.device.startswith("cuda") and not torch.cuda.is_available():
            raise SystemExit("--gpu: there is no NVIDIA GPU here. --device cpu --shape toy tries the code.")
        options = driver.Options(given.out, given.device, given.shape, given.seconds, given.models)
        driver.measure(driver.chosen(given.only, given.part), options)
    table = gpu_table.render(*gpu_table.read(given.out))
    print(table)
    if given.write:
        write("gpu", table)


def write(which: str, table: str) -> None:
    """Put a table into README.md."""
    page = HERE / "README.md"
    begin, end = (mark.format(which) for mark in (BEGIN, END))
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}")


def measure(run: Run) -> dict[str, Any]:
    """The figures of one run.

    Raises:
        SystemExit: it failed.
    """
    python = sys.executable if run.contender != "trl_ppo" else other_python()
    command = [python, "-m", "tests.benchmarks.one", run.contender, run.case, run.options]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
    said = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if done.returncode or not said:
        raise SystemExit(f"{run.label} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(said[-1].removeprefix("FIGURES "))
    told = ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, int | float))
    print(f"[{time.perf_counter() - begun:.0f} s] {run.label}: {told}", file=sys.stderr, flush=True)
    return figures


def environment() -> dict[str, str]:
    """Of every contender."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def other_python() -> str:
    """The interpreter that has TRL 1.12."""
    python = OTHER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(OTHER)], check=True)
        same = [f"{name}=={version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes")]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "trl==1.12.*", *same], check=True)
    return str(python)


def in_turn(runs: list[Run]) -> dict[Run, dict[str, Any]]:
    """The figures of a line's runs, which take turns where they have several, since a machine's speed drifts."""
    tries: dict[Run, list[dict[str, Any]]] = {run: [] for run in runs}
    for turn in range(max((run.turns for run in runs), default=0)):
        for run in runs:
            if turn < run.turns:
                tries[run].append(measure(run))
    return {run: typical(figures) for run, figures in tries.items()}


def typical(tries: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure."""
    numbers = [key for key, value in tries[0].items() if isinstance(value, int | float)]
    return {key: statistics.median(figures[key] for figures in tries) for key in numbers}


def render(lines: list[Line], found: dict[Run, dict[str, Any]], seconds: float) -> str:
    """The table in Markdown, with the machine."""
    rows = ["| | ours | theirs, or compared with | figure | goal | |", "|---|---|---|---|---|---|"]
    for line in lines:
        figures = ({**found[run], "ours": run.contender == "ours"} for run in line.runs)
        ours, theirs, figure = line.figures(*figures)
        sign = "at most" if line.most else "at least"
        reached = "reached" if line.reached(figure) else "**missed**"
        rows.append(f"| {line.what} | {ours} | {theirs} | {figure:.3g} | {sign} {line.goal:g} | {reached} |")
    versions = ", ".join(
        f"{n} {version(n)}" for n in ("torch", "transformers", "trl", "peft", "bitsandbytes")
    )
    today = datetime.datetime.now(datetime.UTC).date()
    card = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    machine = f"{today}; {card}{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}; {versions}"
    return "\n".join(["", f"{machine}; {seconds / 60:.0f} minutes for all.", "", *rows, ""])


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
