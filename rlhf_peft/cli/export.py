"""`rlhf-peft export`: write a run's policy or reward model for the tools that serve it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import RunName, Trust, Verbose, find_run, open_registry_of

TARGETS = ("peft", "merged", "vllm", "ollama")


def export(
    context: typer.Context,
    run: RunName = None,
    to: Annotated[str, typer.Option("--to", help="peft, merged, vllm or ollama.")] = "peft",
    role: Annotated[str, typer.Option("--role", help="policy, or a reward such as reward-0.")] = "policy",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Default: exports/<run>-<to>.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier export wrote there.")
    ] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of merged weights: bfloat16, float16 or float32.")
    ] = "bfloat16",
    push: Annotated[
        str | None, typer.Option("--push", metavar="HUB_ID", help="Upload the folder there.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="To merge on.")] = None,
    trust_remote_code: Trust = False,
    verbose: Verbose = False,
) -> None:
    """Write the adapter, merged weights or a classifier, with a model card, and print what loads or serves it."""
    from ..engine.base_spec import DTYPES
    from ..trained.export import export as write

    if to not in TARGETS:
        raise UsageError(f"--to {to}: expected {', '.join(TARGETS)}.")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: expected {', '.join(DTYPES)}.")
    folder = find_run(run)
    registry = open_registry_of(context.obj, folder)
    words = [folder.resolve().name, *([] if role == "policy" else [role]), to]
    target = output or Path("exports") / "-".join(words)
    exported = write(
        folder,
        to,  # type: ignore[arg-type]
        target,
        role=role,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
        registry=registry,
        report=lambda text: print(text, file=sys.stderr),
    )
    print(exported.folder)
    if exported.difference is not None:
        what = "logit" if exported.offset is None else "score"
        print(
            f"largest {what} difference to what was trained: {exported.difference:.4g} "
            f"(largest {what}: {exported.scale:.4g})"
        )
    if exported.offset is not None:
        print(f"its scores are the reward head's less a constant: add {exported.offset:.6g}")
    print("next:")
    for command in exported.commands or exported.use.splitlines():
        print(f"  {command}".rstrip())
    if push is not None:
        print(f"pushed: {_push(exported.folder, push)}")


def _push(folder: Path, name: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True, private=True)
        return str(api.upload_folder(repo_id=name, folder_path=str(folder)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"--push {name}: {first}. The folder is complete: {folder}") from error
