"""The exact plan of a recipe: its phases on the card, and the changes that make it fit."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...dryrun.meter import Card
from ...dryrun.shim import DryRunUnavailable, library
from ...engine.base_spec import load_config
from ...errors import UsageError
from ...recipe import Recipe, RlStage, load
from ...registry import Registry, base_spec
from ..cards import card_of
from ..forecast import planned
from ..gpus import Budget
from ..plan import Plan, verdict_of
from ..remedies import candidates, remedies
from .extrapolate import Measured, extrapolated
from .stand_in import rows_of_a_step, stand_in, write_model

UNAVAILABLE = 77
QUANTIZERS = ("nf4", "fp4", "none")
"""Those whose layers a dry run can make without weights."""
MOST_REMEDIES = 6


@dataclass(frozen=True, slots=True)
class Wanted:
    """A recipe that is to be measured.

    Attributes:
        recipe: checked.
        plan: of it.
    """

    recipe: Recipe
    plan: Plan


@dataclass(frozen=True, slots=True)
class ExactRemedy:
    """A change of the recipe, and what the phases take with it.

    Attributes:
        overrides: as on the command line.
        phases: in order.
        fits: whether the recipe fits with it.
    """

    overrides: tuple[str, ...]
    phases: list[Measured]
    fits: bool

    @property
    def reserved(self) -> int:
        """Most bytes that any phase holds."""
        return max(phase.reserved for phase in self.phases)


@dataclass(slots=True)
class ExactPlan:
    """What a recipe takes on a card.

    Attributes:
        card: in words.
        has_speed: whether the card's speed is known, so that seconds mean something.
        budget: the memory that there is.
        phases: in order.
        remedies: changes that need less, where it is tight or does not fit.
        notes: assumptions, as text.
    """

    card: str
    has_speed: bool
    budget: Budget
    phases: list[Measured]
    remedies: list[ExactRemedy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> Measured:
        """The phase that holds the most memory."""
        return max(self.phases, key=lambda phase: phase.reserved)

    @property
    def verdict(self) -> str:
        """As `Plan.verdict`, by what is reserved."""
        return verdict_of(self.peak.reserved, self.budget)


def unavailable() -> str:
    """Why a dry run is not possible on this machine; empty: it is. The shim is built if it was not yet."""
    try:
        library()
    except DryRunUnavailable as error:
        return str(error)
    return ""


def _without_triton() -> list[str]:
    """A note where Triton is missing, which torch brings along on a machine with a GPU."""
    if importlib.util.find_spec("triton") is not None:
        return []
    return [
        "Triton is not installed here, as it is beside torch for CUDA: kernels of it are left out, so that logits are "
        "counted with more memory and time than on a GPU"
    ]


def exact(
    recipe: Recipe,
    registry: Registry,
    gpu: str,
    *,
    plugins: Sequence[Path] = (),
    no_plugins: bool = False,
) -> ExactPlan:
    """Measure a recipe on a simulated card.

    Args:
        recipe: checked.
        registry: with its plugins.
        gpu: a size or a card; see `card_of`.
        plugins: files that the command line named.
        no_plugins: installed plugins were left out.

    Raises:
        UsageError: there is no such card, the model cannot be simulated, or this machine cannot do a dry run.
    """
    card, has_speed = card_of(gpu)
    plan, again = planned(recipe, registry, gpu)

    def measure(each: Sequence[Wanted]) -> list[list[Measured] | str]:
        return measured(each, registry, card, plugins=plugins, no_plugins=no_plugins)

    phases = _or_raise(measure([Wanted(recipe, plan)])[0])
    result = ExactPlan(gpu, has_speed, plan.budget, phases, notes=[*_without_triton(), *plan.notes])
    if result.verdict == "fits":
        return result
    quick = remedies(plan, candidates(recipe, registry, gpu=True), again)[:MOST_REMEDIES]
    changes = [remedy.overrides for remedy in quick]
    document = recipe.model_dump(mode="json", exclude_none=True)
    wanted = [Wanted(load(document, change, plugins=registry), again(change)) for change in changes]
    for change, found in zip(changes, measure(wanted), strict=True):
        if not isinstance(found, str):
            least = max(phase.reserved for phase in found)
            if least < result.peak.reserved:
                result.remedies.append(
                    ExactRemedy(change, found, verdict_of(least, plan.budget) != "does not fit")
                )
    return result


def measured(
    wanted: Sequence[Wanted],
    registry: Registry,
    card: Card,
    *,
    plugins: Sequence[Path] = (),
    no_plugins: bool = False,
) -> list[list[Measured] | str]:
    """The phases of each recipe on a card, or what stopped it.

    Each of two depths is measured in a process of its own, for all recipes.

    Raises:
        UsageError: a model cannot be simulated, or this machine cannot do a dry run.
    """
    if not wanted:
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = [_write(each, registry, folder / str(i)) for i, each in enumerate(wanted)]
        files = []
        for depth in (0, 1):
            request = {
                "card": asdict(card),
                "plugin_files": [str(Path(path).resolve()) for path in plugins],
                "no_plugins": no_plugins,
                "recipes": [
                    {"recipe": documents[depth], "trained_before": _trained_before(each.recipe)}
                    for each, (documents, _, _) in zip(wanted, pairs, strict=True)
                ],
            }
            file = folder / f"request-{depth}.json"
            file.write_text(json.dumps(request), encoding="utf-8")
            files.append(file)
        with ExitStack() as stack:
            processes = [stack.enter_context(_started(file)) for file in files]
            both = [_results(process, len(wanted)) for process in processes]
    return [
        _extrapolated(each, registry, depths, layers, (first, second))
        for each, (_, depths, layers), first, second in zip(wanted, pairs, *both, strict=True)
    ]


def _write(
    wanted: Wanted, registry: Registry, folder: Path
) -> tuple[list[dict[str, Any]], tuple[int, int], int]:
    """Write the files of a recipe; returns its stand-in at both depths, the depths, and the layers of the whole model.

    Raises:
        UsageError: the model cannot be simulated.
    """
    recipe = wanted.recipe
    if recipe.model.quantization.name not in QUANTIZERS:
        raise UsageError(
            f"--exact: a dry run knows the quantizers {', '.join(QUANTIZERS)}, not {recipe.model.quantization.name}. "
            "Leave out --exact, or change model.quantization."
        )
    config = load_config(base_spec(recipe, registry))
    depths, layers = depths_of(config.get_text_config())
    documents = []
    for depth in depths:
        place = folder / str(depth)
        place.mkdir(parents=True, exist_ok=True)
        model = write_model(config, depth, place)
        documents.append(stand_in(recipe, wanted.plan, registry, model, place))
    return documents, depths, layers


def depths_of(config: Any) -> tuple[tuple[int, int], int]:
    """Two numbers of layers to measure, and the model's own.

    Where kinds of layers take turns, both are whole turns. A model that is no deeper is measured as it is.
    """
    layers = int(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None) or [None] * layers
    turn = next(
        size for size in range(1, layers + 1) if all(kinds[i] == kinds[i % size] for i in range(layers))
    )
    first, second = (2, 3) if turn == 1 else (turn, 2 * turn)
    return ((layers, layers) if second >= layers else (first, second)), layers


def _trained_before(recipe: Recipe) -> list[str]:
    """Stages whose policy begins as that of an earlier run."""
    return [stage.name for stage in recipe.stages if "policy" in getattr(stage, "init", {})]


@contextmanager
def _started(file: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that measures the recipes of a request; at the end it is gone, however that comes."""
    command = [sys.executable, "-m", "rlhf_peft.planning.exact", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _results(process: subprocess.Popen[str], count: int) -> list[list[dict[str, Any]] | str]:
    """What a process printed of each recipe: its phases, or what stopped it.

    Raises:
        UsageError: a dry run is not possible on this machine.
    """
    out, errors = process.communicate()
    if process.returncode == UNAVAILABLE:
        raise UsageError(f"--exact: {errors.strip()}")
    last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    found: list[list[dict[str, Any]] | str] = [last] * count
    for line in out.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("PHASES", "FAILED"):
            number, result = json.loads(rest)
            found[number] = result
    return found


def _extrapolated(
    wanted: Wanted,
    registry: Registry,
    depths: tuple[int, int],
    layers: int,
    found: tuple[list[dict[str, Any]] | str, list[dict[str, Any]] | str],
) -> list[Measured] | str:
    """The phases of the whole model; what one step of fewer rows stands for is counted in full."""
    first, second = found
    if isinstance(first, str) or isinstance(second, str):
        return first if isinstance(first, str) else str(second)
    stages = {stage.name: stage for stage in wanted.recipe.stages}
    phases = []
    for one, two in zip(first, second, strict=True):
        phase, stage = extrapolated(depths, (one, two), layers), stages[one["stage"]]
        if isinstance(stage, RlStage):
            needs = (registry.memory("rewards", reward.name, reward.options) for reward in stage.rewards)
            other_models = sum(need.model_bytes for need in needs)
            phase = replace(phase, peak=phase.peak + other_models, reserved=phase.reserved + other_models)
        else:
            phase = phase.repeated(stage.batch_size / rows_of_a_step(stage, wanted.plan))
        phases.append(phase)
    return phases


def _or_raise(found: list[Measured] | str) -> list[Measured]:
    if isinstance(found, str):
        raise UsageError(f"--exact: the dry run failed: {found}. Leave out --exact for the quick plan.")
    return found
