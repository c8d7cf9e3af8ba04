"""Exports a run for the tools that serve it: PEFT, plain weights, vLLM, Ollama, a sequence classifier.

`export_adapter` and `export_merged` write the files; here an export is checked, and its folder put into place at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import atomic
from ..engine import POLICY
from ..engine.artifacts import CONFIG_FILE
from ..engine.base_spec import DTYPES
from ..errors import RunFolderError, UsageError
from ..recipe import load
from ..registry import Registry, chosen_quantizer
from ..runs import History
from .export_adapter import export_adapter
from .export_merged import export_classifier, export_merged
from .export_record import check_replaceable, write_record
from .export_types import Exported, Place, Target
from .opened import ADAPTERS, open_run


def export(
    run: Path,
    target: Target,
    folder: Path,
    *,
    role: str = POLICY,
    dtype: str = "bfloat16",
    device: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    registry: Registry | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a role of a run for another tool.

    Args:
        run: the run's folder.
        target: peft (an adapter), merged (plain weights), vllm (an adapter and the line that serves it) or ollama
            (plain weights and a Modelfile).
        folder: that is written; it must be empty or absent.
        role: policy, or a reward, which becomes a sequence classifier.
        dtype: of merged weights.
        device: to measure on.
        trust_remote_code: run code from the model's repository.
        overwrite: replace the folder where an earlier export wrote it.
        registry: makes the quantizer; None: with all installed plugins.
        report: is called with a line of text before a slow step.

    Raises:
        UsageError: the folder is not empty, or the role cannot be exported for this target.
        RunFolderError: the run has no adapter of the role.
    """
    recipe = load(run / "recipe.yaml", (), plugins=None)
    registry = registry or Registry.load()
    quantizer = chosen_quantizer(recipe, registry)
    _check(run, target, folder, role, overwrite)
    adapter, history = run / ADAPTERS / role, History.of(run)
    opened = None
    if target not in ("peft", "vllm"):
        opened = open_run(run, device=device, trust_remote_code=trust_remote_code, registry=registry)
        report(f"merging {role} into the dequantized base, in {dtype} ...")
    with atomic.folder(folder, replace=overwrite) as temporary:
        place = Place(temporary, folder)
        if opened is None:
            exported = export_adapter(
                recipe, quantizer, history, adapter, place, role, target, trust_remote_code
            )
        elif role == POLICY:
            exported = export_merged(opened, quantizer, history, place, DTYPES[dtype], target)
        else:
            exported = export_classifier(opened, quantizer, history, role, place, DTYPES[dtype])
        write_record(
            temporary,
            run=history.name,
            role=role,
            target=target,
            dtype=None if opened is None else dtype,
            largest_difference=exported.difference,
            largest_value=exported.scale,
            score_offset=exported.offset,
        )
    return exported


def _check(run: Path, target: Target, folder: Path, role: str, overwrite: bool) -> None:
    """Refuse an export that cannot be made, before anything is loaded; see `export`."""
    adapters = run / ADAPTERS
    if not (adapters / role / CONFIG_FILE).is_file():
        known = sorted(path.name for path in adapters.glob("*") if (path / CONFIG_FILE).is_file())
        raise RunFolderError(f"{run}: has no adapter of {role}. It has {', '.join(known) or 'none yet'}.")
    if not atomic.is_empty(folder):
        if not overwrite:
            raise UsageError(
                f"{folder}: is not empty. Choose another folder with --output, or replace an earlier export with "
                "--overwrite."
            )
        check_replaceable(folder)
    if role != POLICY and target in ("vllm", "ollama"):
        raise UsageError(f"--to {target}: serves policies. A reward goes with --to peft or --to merged.")
