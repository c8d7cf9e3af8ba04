"""`rlhf-peft chat`: talk to the policy that a run has trained."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .options import Device, RunName, Trust, Verbose, find_run, open_registry_of

if TYPE_CHECKING:
    from ..trained import Opened
    from ..trained.chat import ChatSettings, Message

HELP = """/ref     the reference's answer beside the policy's, on or off
/score   what the reward heads say, on or off
/temp X  temperature; 0 takes the likeliest token
/seed N  seed of the answers
/new     forget what was said
/quit    end (so does the end of the input)"""


def chat(
    context: typer.Context,
    run: RunName = None,
    temperature: Annotated[float, typer.Option("--temp", min=0.0, help="0 takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the answers.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 512,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    reference: Annotated[bool, typer.Option("--ref", help="Show the reference's answers too.")] = False,
    score: Annotated[bool, typer.Option("--score", help="Show what the reward heads say.")] = False,
    device: Device = None,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Talk to the policy of a run. Works with a pipe too: each line is a conversation of its own, with one answer."""
    from ..trained import open_run
    from ..trained.chat import ChatSettings

    folder = find_run(run)
    registry = open_registry_of(context.obj, folder)
    opened = open_run(folder, device=device, trust_remote_code=trust_remote_code, registry=registry)
    opened.need(reference=reference)
    system_message = system if system is not None else opened.recipe.stages[-1].dataset.system
    settings = ChatSettings(
        temperature, seed, max_new_tokens, system_message, dict(opened.recipe.model.chat_template_kwargs)
    )
    Session(opened, settings, reference, score).run()


class Session:
    """A conversation at a terminal, or through a pipe."""

    def __init__(self, opened: Opened, settings: ChatSettings, reference: bool, score: bool) -> None:
        self.opened, self.settings, self.reference, self.score = opened, settings, reference, score
        self.messages: list[Message] = []
        self.terminal = sys.stdin.isatty()

    def run(self) -> None:
        """Answer lines of the input until it ends or says /quit."""
        if not self.terminal and isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        if self.terminal:
            with contextlib.suppress(ImportError):  # Windows has none
                import readline  # noqa: F401 (lets a line be edited, and earlier ones be called back)
            print(f"{self.opened.path}. /help says what else can be typed.", file=sys.stderr)
        while (line := self._line()) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                if not self._command(line):
                    return
                continue
            try:
                self._answer(line)
            except UsageError as problem:
                self._note(str(problem))
            except KeyboardInterrupt:
                if not self.terminal:
                    raise
                self._note("\nstopped; this turn is forgotten")

    def _line(self) -> str | None:
        if self.terminal:
            try:
                return input("> ")
            except (EOFError, KeyboardInterrupt):
                return None
            except UnicodeDecodeError as error:
                self._note(f"this line is not UTF-8 ({error.reason}); say it again")
                return ""
        line = sys.stdin.readline()
        if any("\udc80" <= letter <= "\udcff" for letter in line):
            raise UsageError("the input is not UTF-8. Convert it, for example with iconv -t utf-8.")
        return line.rstrip("\n") if line else None

    def _answer(self, text: str) -> None:
        from ..engine import POLICY, REFERENCE
        from ..trained.chat import answer, encode, scores

        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        ids = encode(self.opened.base, messages, self.settings)
        roles = [REFERENCE, POLICY] if self.reference else [POLICY]
        pieces: list[str] = []
        for role in roles:
            if len(roles) > 1:
                print(f"{role}: ", end="", flush=True)
            pieces.clear()
            answer_ids = answer(
                self.opened.base, ids, self.settings, role, partial(self._print_piece, pieces)
            )
            print(flush=True)
            if self.score and self.opened.rewards:
                reward_scores = scores(self.opened, [*ids, *answer_ids])
                print(
                    "  ".join(f"{name} {value:.3f}" for name, value in reward_scores.items()),
                    file=sys.stderr,
                    flush=True,
                )
        if self.terminal:
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    @staticmethod
    def _print_piece(pieces: list[str], piece: str) -> None:
        pieces.append(piece)
        print(piece, end="", flush=True)

    def _command(self, line: str) -> bool:
        """Carry out a line that begins with a slash; returns whether the conversation goes on."""
        word, _, rest = line.partition(" ")
        try:
            if word in ("/quit", "/exit", "/q"):
                return False
            if word == "/ref" and self.opened.no_reference is not None:
                self._note(self.opened.no_reference)
            elif word == "/ref":
                self.reference = not self.reference
                self._note(f"the reference's answers are {'on' if self.reference else 'off'}")
            elif word == "/score":
                self.score = not self.score
                none = "" if self.opened.rewards else "; this run has no reward head"
                self._note(f"scores are {'on' if self.score else 'off'}{none}")
            elif word == "/temp":
                value = float(rest)
                if value < 0:
                    raise ValueError
                self.settings = replace(self.settings, temperature=value)
                self._note(f"temperature {value:g}")
            elif word == "/seed":
                self.settings = replace(self.settings, seed=int(rest))
                self._note(f"seed {self.settings.seed}")
            elif word == "/new":
                self.messages = []
                self._note("forgotten")
            else:
                self._note(HELP if word == "/help" else f"{word} is unknown.\n{HELP}")
        except ValueError:
            self._note(f"{word}: expected a number, found {rest!r}")
        return True

    @staticmethod
    def _note(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
