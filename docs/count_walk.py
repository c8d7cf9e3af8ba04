"""Counts the functions and files of the package that one prompt passes through: `python docs/count_walk.py`.

It runs the shipped quickstart, cut down to one update of SFT and of the reward model and two of PPO, and notes every
function of the package that is entered on the main thread. A function counts once for each part of the way. Functions
without a name (comprehensions, lambdas) and what runs in threads or worker processes are not counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import rlhf_peft
from rlhf_peft.execution.run import NullReporter
from rlhf_peft.stages.rl import loop

PACKAGE = Path(rlhf_peft.__file__).parent
LOOP = Path(loop.__file__)
SHORT = [
    "stages.sft.max_steps=1",
    "stages.reward_model.max_steps=1",
    "stages.rl.max_steps=2",
    "stages.rl.checkpoint.every=1",
    "stages.rl.prompts_per_step=8",
]
STEP = 1
"""The step of RL that is counted; the last one leaves its checkpoint to the end of the stage."""


def headings() -> list[tuple[int, str]]:
    """The line and the name of each numbered part of `train_step`, from its comments."""
    lines = enumerate(LOOP.read_text(encoding="utf-8").splitlines(), 1)
    parts = ((number, line.strip()) for number, line in lines)
    return [
        (n, line[2:].partition(":")[0]) for n, line in parts if line[:3] in {f"# {k}" for k in range(1, 9)}
    ]


class Walk:
    """Which functions each part of the way enters."""

    def __init__(self) -> None:
        self.parts: dict[str, set[CodeType]] = defaultdict(set)
        self.headings = headings()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call; `sys.setprofile` calls this."""
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<") or not code.co_filename.startswith(str(PACKAGE)):
            return
        if part := self.part(frame):
            self.parts[part].add(code)

    def part(self, frame: FrameType) -> str | None:
        """The part of the way that a call belongs to; None: another step, or another stage."""
        above: FrameType | None = frame
        while above is not None:
            code, name = above.f_code, above.f_code.co_name
            if code.co_filename == str(LOOP) and name in ("train_step", "train"):
                return self.of_loop(above) if above is not frame else "the loop itself"
            above = above.f_back
        return None

    def of_loop(self, frame: FrameType) -> str | None:
        """The numbered part of `train_step`, or what `train` does after it."""
        if frame.f_code.co_name == "train_step":
            if frame.f_locals["step"] != STEP:
                return None
            begun = [name for line, name in self.headings if line <= frame.f_lineno]
            return begun[-1] if begun else None
        return "9. Log and checkpoint" if frame.f_locals.get("step") == STEP else None

    def table(self) -> str:
        """The counts as a table in Markdown."""
        rows = ["| part | functions | files |", "|---|---|---|"]
        every = set().union(*self.parts.values())
        for part in sorted(self.parts):
            rows.append(f"| {part} | {len(self.parts[part])} | {files(self.parts[part])} |")
        rows.append(f"| all, each counted once | {len(every)} | {files(every)} |")
        step = set().union(*(codes for part, codes in self.parts.items() if part[:1] in "12345678"))
        rows.append(f"| 1 to 8, each counted once | {len(step)} | {files(step)} |")
        return "\n".join(rows)


class Begin(NullReporter):
    """A reporter that begins to count when the stage of RL has been set up."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk

    def stage(self, name: str, total: int) -> None:
        """Begin with RL."""
        if name == "rl":
            sys.setprofile(self.walk)


def files(codes: set[CodeType]) -> int:
    """How many files some functions stand in."""
    return len({code.co_filename for code in codes})


if __name__ == "__main__":
    walk = Walk()
    with tempfile.TemporaryDirectory() as folder:
        recipe = rlhf_peft.load_recipe("quickstart", [*SHORT, f"output_dir={folder}"])
        try:
            rlhf_peft.run(recipe, reporter=Begin(walk))
        finally:
            sys.setprofile(None)
    print(walk.table())
