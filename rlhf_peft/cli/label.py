"""`rlhf-peft label`: a page on which people compare completions, and what becomes of it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import Device, Trust, Verbose, add_plugins_of, dataset_source, find_run, open_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..labelling.store import Judgement, Pair, Store
    from .options import Settings


MOST_SHOWN = 10
"""People, and pairs of people, that are told one by one."""


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
    given = [source for source in (pairs, run, compare) if source is not None]
    if len(given) > 1:
        raise UsageError("give one of PAIRS, --run and --compare.")
    from ..labelling.store import Store

    store, among = Store(db or _default(run, compare)), None
    if given:
        found = _pairs(
            context.obj,
            pairs,
            run,
            compare,
            prompts,
            size,
            each,
            seed,
            max_new_tokens,
            device,
            trust_remote_code,
        )
        new, among = store.add(found), store.numbers(found)
        print(f"{new} new pairs, {len(store.pairs())} in {store.path}", file=sys.stderr)
    if export is not None or results:
        _export(store, export)
        _results(store, as_json)
        return
    if instructions is not None:
        store.instructions = instructions
    if not store.pairs():
        raise UsageError(f"{store.path}: holds no pairs. Give a file of pairs, --run RUN or --compare RUN.")
    from ..labelling.serve import serve

    def told(link: str) -> None:
        print(link, flush=True)
        print("Ctrl-C ends it; every judgement is saved at once.", file=sys.stderr)
        if browser:
            import threading
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()

    title = "Blind test: which answer is better?" if compare else "Which answer is better?"
    try:
        serve(store, port=port, title=title, among=among, on_ready=told)
    except KeyboardInterrupt as stop:
        # Ctrl-C is how a person ends it; SIGTERM is somebody else's wish, and stays an exit 143.
        if type(stop) is not KeyboardInterrupt:
            raise
    _results(store, as_json)
    print(f"next: rlhf-peft label --db {store.path}  goes on with it", file=sys.stderr)
    print(f"next: rlhf-peft label --db {store.path} --export preferences.jsonl", file=sys.stderr)


def _default(run: str | None, compare: str | None) -> Path:
    name = run or compare
    return Path("labels.db") if name is None else find_run(name) / "labels.db"


def _pairs(
    settings: Settings,
    pairs: str | None,
    run: str | None,
    compare: str | None,
    prompts: str | None,
    size: int,
    each: int,
    seed: int,
    most: int,
    device: str | None,
    trust_remote_code: bool,
) -> list[Pair]:
    if pairs is not None:
        from ..labelling.files import from_file

        return from_file(pairs)
    from ..labelling import sources
    from ..trained import open_run
    from ..trained.prompts import prompts_of

    folder = find_run(run or compare)
    registry = open_registry(settings)
    add_plugins_of(registry, folder)
    opened = open_run(folder, device=device, trust_remote_code=trust_remote_code, registry=registry)
    asked = prompts_of(
        opened,
        registry,
        what="label",
        dataset=dataset_source(registry, prompts),
        held_out=compare is not None,
        size=size,
        max_new_tokens=most,
        shuffle=seed,
    )
    print(f"answering {len(asked)} prompts ...", file=sys.stderr)
    if compare is not None:
        return sources.blind_pairs(opened, registry, asked, seed=seed, most=most)
    return sources.disagreed_pairs(opened, registry, asked, each=each, seed=seed, most=most)


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
    print(f"next: {_loop(store.path.parent, file)}", file=sys.stderr)


def _left_out(pairs: Sequence[Pair], judgements: Sequence[Judgement], rows: Sequence[Any]) -> str:
    """Which pairs an export leaves out, in words."""
    judged = {judgement.pair for judgement in judgements if judgement.choice != "skip"}
    open_pairs, undecided = len(pairs) - len(judged), len(judged) - len(rows)
    parts = [f"{open_pairs} not judged or skipped"] if open_pairs else []
    parts += [f"{undecided} undecided (ties, or as many for each)"] if undecided else []
    return f"; left out: {', '.join(parts)}" if parts else ""


def _loop(folder: Path, file: Path) -> str:
    """What trains a reward model on it: the recipe of the run that was labelled, else a shipped one."""
    from ..recipe import RewardModelStage, load
    from ..runs import is_run

    if is_run(folder):
        recipe = load(folder / "recipe.yaml", (), plugins=None)
        stage = next((stage for stage in recipe.stages if isinstance(stage, RewardModelStage)), None)
        if stage is not None:
            place = f"stages.{stage.name}"
            rows = _rows(place, file) if stage.eval.dataset is None else [f"{place}.dataset={{path: {file}}}"]
            named = [
                f"name={recipe.name}-2",
                f"output_dir={folder.parent}",
                *rows,
                f"{place}.init.reward={folder}",
            ]
            return shlex.join(["rlhf-peft", "run", f"{folder}/recipe.yaml", *named])
    return shlex.join(["rlhf-peft", "run", "reward-model", *_rows("stages.reward_model", file)])


def _rows(place: str, file: Path) -> list[str]:
    """Overrides for a stage that holds out a part of these rows; its own split is another dataset's."""
    return [f"{place}.dataset={{path: {file}, eval_fraction: 0.1}}", f"{place}.eval={{every: 50}}"]


def _results(store: Store, as_json: bool) -> None:
    from dataclasses import asdict

    from ..labelling.results import agreements, blind_tests

    judged = store.judgements()
    agreed, tests = agreements(judged), blind_tests(store.pairs(), judged)
    if as_json:
        told = {
            "judgements": len(judged),
            "agreement": [asdict(found) for found in agreed],
            "blind_tests": [asdict(found) for found in tests],
        }
        print(json.dumps(told, indent=2))
        return
    people = sorted({judgement.annotator for judgement in judged})
    named = ", ".join(people[:MOST_SHOWN]) + (
        f" and {len(people) - MOST_SHOWN} more" if len(people) > MOST_SHOWN else ""
    )
    print(f"{len(judged)} judgements by {named or 'nobody'}")
    shown = sorted(agreed, key=lambda found: -found.pairs)[:MOST_SHOWN]
    for found in shown:
        who = " and ".join(found.people)
        print(f"{who}: agree on {found.agreed:.0%} of {found.pairs} pairs, Cohen's kappa {found.kappa:.2f}")
    if len(agreed) > len(shown):
        shared = sum(found.pairs for found in agreed)
        share = sum(found.agreed * found.pairs for found in agreed) / shared
        kappa = sum(found.kappa * found.pairs for found in agreed) / shared
        print(
            f"all {len(agreed):,} pairs of people, weighted by the pairs of answers that they share: agree on "
            f"{share:.0%}, Cohen's kappa {kappa:.2f} (each of them: --results --json)"
        )
    for test in tests:
        print(
            f"{test.source}: policy against reference: preferred in {test.rate:.0%} of {test.pairs} pairs "
            f"(95 % interval {test.low:.0%} to {test.high:.0%})"
        )
