"""Who raised a warning, and whose call caused it: asked of the stack, for filters only know the line that is named."""

import linecache
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1]
OWN = tuple(f"{ROOT / name}/" for name in ("rlhf_peft", "plugins", "tests"))
STDLIB = sysconfig.get_path("stdlib")
PASSED_THROUGH = (
    "torch/nn/modules/module.py",
    "torch/utils/_contextlib.py",
    "torch/autograd/",
    "torch/utils/checkpoint.py",
    "accelerate/utils/operations.py",
    "accelerate/hooks.py",
    "accelerate/accelerator.py",
)
"""Files that only hand a call on: between the caller of a model and its `forward`, say."""
HANDING_ON = ("__post_init__",)
"""Functions that only hand arguments on: a configuration of TRL's is one of transformers'."""


@dataclass(frozen=True)
class Blame:
    """A warning, and the line of ours that caused it.

    Attributes:
        file: of ours, from the root of the repository on; None: another library's own doing.
        line: in it.
        by: the library that warned.
        text: category and message.
    """

    file: str | None
    line: int
    by: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.by} warns: {self.text}"


def is_own(filename: str) -> bool:
    return filename.startswith(OWN)


def library(filename: str) -> str:
    """The top-level package that a file belongs to, `python` for the standard library."""
    for folder in ("site-packages/", "dist-packages/"):
        if folder in filename:
            return filename.rpartition(folder)[2].split("/")[0].removesuffix(".py")
    return "python" if filename.startswith((STDLIB, "<")) else filename


def raised_by_us(frame: FrameType | None) -> bool:
    """Whether the innermost frame is our code, and it called `warn` itself (and not C code that warned)."""
    if frame is None or not is_own(frame.f_code.co_filename):
        return False
    positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    first, last = positions[0] or frame.f_lineno, positions[1] or frame.f_lineno
    return any("warn" in linecache.getline(frame.f_code.co_filename, n) for n in range(first, last + 1))


def blame(frame: FrameType | None, text: str) -> Blame:
    """Walk from the frame that warned to the first frame of another library, or of ours."""
    assert frame is not None
    warner = library(frame.f_code.co_filename)
    while frame is not None:
        name = frame.f_code.co_filename
        if is_own(name):
            return Blame(str(Path(name).relative_to(ROOT)), frame.f_lineno, warner, text)
        theirs = library(name)
        handed_on = theirs == "python" or any(part in name for part in PASSED_THROUGH)
        handed_on |= frame.f_code.co_name in HANDING_ON
        if theirs != warner and not handed_on:
            break
        frame = frame.f_back
    return Blame(None, 0, warner, text)


def warner_frame() -> FrameType | None:
    """The frame that warned, or logged: asked by a function that stands in for `warnings.showwarning`, or a handler."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.endswith(("/warnings.py", "/logging/__init__.py")):
        frame = frame.f_back
    return frame
