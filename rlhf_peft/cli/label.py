"""`rlhf-peft label`: serve a page on which people compare completions, and export or summarise their judgements."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import Device, Trust, Verbose, add_plugins_of, dataset_source, find_run, open_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..labelling.results import Agreement
    from ..labelling.store import Judgement, Pair, Store
    from .options import Settings


MOST_SHOWN = 10
"""At most this many people, and pairs of people, are printed one by one."""


def label(
    context: typer.Context,
    pairs: Annotated[
        str | None,
        typer.Argument(metavar="[PAIRS]", help="File or hub id: prompt with chosen+rejected, or a+b."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="RUN", help="Compare answers of this run's policy, the most disputed first."
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="RUN", help="Blind test: this run's policy against its reference."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="PATH", help="With --run and --compare; default: the RL stage's."),
    ] = None,
    db: Annotated[Path | None, typer.Option("--db", metavar="F", help="Where judgements are kept.")] = None,
    size: Annotated[int, typer.Option("--size", min=1, help="Most prompts that are answered.")] = 100,
    each: Annotated[
        int, typer.Option("--each", min=2, help="Answers to a prompt of which two are chosen.")
    ] = 4,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the answers, and of which prompts are asked.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 256,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="F", help="Write the preferences there (jsonl) and serve nothing."),
    ] = None,
    results: Annotated[
        bool, typer.Option("--results", help="Print agreement and win rates and serve nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON.")] = False,
    instructions: Annotated[
        str | None,
        typer.Option("--instructions", metavar="TEXT", help="What to judge by; kept with the judgements."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    device: Device = None,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Compare completions in a browser on this machine; every judgement is saved at once. Ctrl-C ends it."""
    source = _PairSource(
        pairs, run, compare, prompts, size, each, seed, max_new_tokens, device, trust_remote_code
    )
    from ..labelling.store import Store

    store, numbers = Store(db or source.default_store()), None
    if source.is_given():
        new_pairs = source.load(context.obj)
        count, numbers = store.add(new_pairs), store.numbers(new_pairs)
        print(f"{count} new pairs, {len(store.pairs())} in {store.path}", file=sys.stderr)
    if export is not None or results:
        _export(store, export)
        _results(store, as_json)
        return
    if instructions is not None:
        store.instructions = instructions
    title = "Blind test: which answer is better?" if compare else "Which answer is better?"
    _serve(store, numbers, port, title, browser)
    _results(store, as_json)
    print(f"next: rlhf-peft label --db {store.path}  goes on with it", file=sys.stderr)
    print(f"next: rlhf-peft label --db {store.path} --export preferences.jsonl", file=sys.stderr)


@dataclass(frozen=True)
class _PairSource:
    """Where pairs of answers come from: the options of `label` with the same names.

    At most one of `pairs`, `run` and `compare` is given.
    """

    pairs: str | None
    run: str | None
    compare: str | None
    prompts: str | None
    size: int
    each: int
    seed: int
    max_new_tokens: int
    device: str | None
    trust_remote_code: bool

    def __post_init__(self) -> None:
        if self._count() > 1:
            raise UsageError("give one of PAIRS, --run and --compare.")

    def _count(self) -> int:
        """How many of the three sources are given."""
        return sum(source is not None for source in (self.pairs, self.run, self.compare))

    def is_given(self) -> bool:
        """Whether the command line names a source of new pairs."""
        return self._count() > 0

    def default_store(self) -> Path:
        """The file for judgements where `--db` is not given: in the run's folder, else in the current one."""
        name = self.run or self.compare
        return Path("labels.db") if name is None else find_run(name) / "labels.db"

    def load(self, settings: Settings) -> list[Pair]:
        """Read the pairs from a file, or let the run's models answer prompts."""
        if self.pairs is not None:
            from ..labelling.files import from_file

            return from_file(self.pairs)
        from ..labelling import sources
        from ..trained import open_run
        from ..trained.prompts import prompts_of

        folder = find_run(self.run or self.compare)
        registry = open_registry(settings)
        add_plugins_of(registry, folder)
        opened = open_run(
            folder, device=self.device, trust_remote_code=self.trust_remote_code, registry=registry
        )
        prompts = prompts_of(
            opened,
            registry,
            what="label",
            dataset=dataset_source(registry, self.prompts),
            held_out=self.compare is not None,
            size=self.size,
            max_new_tokens=self.max_new_tokens,
            shuffle=self.seed,
        )
        print(f"answering {len(prompts)} prompts ...", file=sys.stderr)
        most = self.max_new_tokens
        if self.compare is not None:
            return sources.blind_pairs(opened, registry, prompts, seed=self.seed, most=most)
        return sources.disagreed_pairs(opened, registry, prompts, each=self.each, seed=self.seed, most=most)


def _serve(store: Store, numbers: Sequence[int] | None, port: int, title: str, browser: bool) -> None:
    """Serve the page until Ctrl-C.

    Args:
        store: the pairs and their judgements.
        numbers: of the pairs to ask about; None: all.
        port: of the server; 0: a free one.
        title: of the page.
        browser: open the page in a browser.

    Raises:
        UsageError: the store holds no pairs.
    """
    if not store.pairs():
        raise UsageError(f"{store.path}: holds no pairs. Give a file of pairs, --run RUN or --compare RUN.")
    from ..labelling.serve import serve

    def announce(link: str) -> None:
        print(link, flush=True)
        print("Ctrl-C ends it; every judgement is saved at once.", file=sys.stderr)
        if browser:
            import threading
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()

    try:
        serve(store, port=port, title=title, among=numbers, on_ready=announce)
    except KeyboardInterrupt as stop:
        # A person ends it with Ctrl-C. SIGTERM comes from another program, and remains an exit with 143.
        if type(stop) is not KeyboardInterrupt:
            raise


def _export(store: Store, file: Path | None) -> None:
    from ..labelling.files import write_rows
    from ..labelling.results import preferences

    if file is None:
        return
    pairs, judgements = store.pairs(), store.judgements()
    rows = preferences(pairs, judgements)
    if not rows:
        raise UsageError(f"{store.path}: no pair has been judged yet, so there is nothing to export.")
    write_rows(rows, file)
    print(
        f"{file}: {len(rows)} preference{'s' if len(rows) != 1 else ''}{_left_out(pairs, judgements, rows)}",
        file=sys.stderr,
    )
    print(f"next: {_next_command(store.path.parent, file)}", file=sys.stderr)


def _left_out(pairs: Sequence[Pair], judgements: Sequence[Judgement], rows: Sequence[Any]) -> str:
    """The pairs that an export leaves out, as text."""
    judged = {judgement.pair for judgement in judgements if judgement.choice != "skip"}
    open_pairs, undecided = len(pairs) - len(judged), len(judged) - len(rows)
    parts = [f"{open_pairs} not judged or skipped"] if open_pairs else []
    parts += [f"{undecided} undecided (ties, or as many for each)"] if undecided else []
    return f"; left out: {', '.join(parts)}" if parts else ""


def _next_command(folder: Path, file: Path) -> str:
    """The command that trains a reward model on exported preferences.

    It uses the recipe of the run that was labelled, or else the shipped `reward-model`.
    """
    from ..recipe import RewardModelStage, load
    from ..runs import is_run

    if is_run(folder):
        recipe = load(folder / "recipe.yaml", (), plugins=None)
        stage = next((stage for stage in recipe.stages if isinstance(stage, RewardModelStage)), None)
        if stage is not None:
            key = f"stages.{stage.name}"
            dataset = (
                _dataset(key, file) if stage.eval.dataset is None else [f"{key}.dataset={{path: {file}}}"]
            )
            overrides = [
                f"name={recipe.name}-2",
                f"output_dir={folder.parent}",
                *dataset,
                f"{key}.init.reward={folder}",
            ]
            return shlex.join(["rlhf-peft", "run", f"{folder}/recipe.yaml", *overrides])
    return shlex.join(["rlhf-peft", "run", "reward-model", *_dataset("stages.reward_model", file)])


def _dataset(key: str, file: Path) -> list[str]:
    """Overrides that train a stage on a file and hold out a tenth of its rows for evaluation."""
    return [f"{key}.dataset={{path: {file}, eval_fraction: 0.1}}", f"{key}.eval={{every: 50}}"]


def _results(store: Store, as_json: bool) -> None:
    from dataclasses import asdict

    from ..labelling.results import agreements, blind_tests

    judged = store.judgements()
    agreed, tests = agreements(judged), blind_tests(store.pairs(), judged)
    if as_json:
        report = {
            "judgements": len(judged),
            "agreement": [asdict(agreement) for agreement in agreed],
            "blind_tests": [asdict(test) for test in tests],
        }
        print(json.dumps(report, indent=2))
        return
    _print_agreements(judged, agreed)
    for test in tests:
        print(
            f"{test.source}: policy against reference: preferred in {test.rate:.0%} of {test.pairs} pairs "
            f"(95 % interval {test.low:.0%} to {test.high:.0%})"
        )


def _print_agreements(judged: Sequence[Judgement], agreed: Sequence[Agreement]) -> None:
    """Print who judged, and how well people agree: those with most pairs in common, and the mean over all."""
    people = sorted({judgement.annotator for judgement in judged})
    named = ", ".join(people[:MOST_SHOWN]) + (
        f" and {len(people) - MOST_SHOWN} more" if len(people) > MOST_SHOWN else ""
    )
    print(f"{len(judged)} judgements by {named or 'nobody'}")
    shown = sorted(agreed, key=lambda agreement: -agreement.pairs)[:MOST_SHOWN]
    for one in shown:
        who = " and ".join(one.people)
        print(f"{who}: agree on {one.agreed:.0%} of {one.pairs} pairs, Cohen's kappa {one.kappa:.2f}")
    if len(agreed) > len(shown):
        shared = sum(one.pairs for one in agreed)
        share = sum(one.agreed * one.pairs for one in agreed) / shared
        kappa = sum(one.kappa * one.pairs for one in agreed) / shared
        print(
            f"all {len(agreed):,} pairs of people, weighted by the pairs of answers that they share: agree on "
            f"{share:.0%}, Cohen's kappa {kappa:.2f} (each of them: --results --json)"
        )
