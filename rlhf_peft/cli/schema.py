"""`rlhf-peft schema`: the JSON Schema of recipes, or of one plugin's options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .options import Plugins, open_registry

if TYPE_CHECKING:
    from ..registry import Registry


def schema(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Something registered: ppo, or algorithms.ppo.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Every key and every metric as a Markdown page instead.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Print the JSON Schema of a recipe, plugins included, or of one plugin's options."""
    registry = open_registry(context.obj, plugin, quiet=True)
    from ..recipe import document, json_schema

    if markdown:
        if name:
            raise UsageError("--markdown documents the whole recipe; leave out the name")
        from ..stages import documentation

        print(document(registry.options()), documentation.document(registry), sep="\n", end="")
        return
    shown = json_schema(registry.options()) if name is None else _of_one(registry, name)
    print(json.dumps(shown, indent=2))


def _of_one(registry: Registry, name: str) -> dict[str, Any]:
    """The JSON Schema of the options of one registered algorithm, reward, sampler and so on."""
    known = registry.options()
    kind, dot, short = name.partition(".")
    if dot and kind in known:
        return registry.options_model(kind, short).model_json_schema()
    kinds = [kind for kind in known if registry.has(kind, name)]
    if len(kinds) > 1:
        choices = " or ".join(f"{kind}.{name}" for kind in kinds)
        raise UsageError(f"{name} is registered more than once. Say {choices}.")
    if not kinds:
        listed = "; ".join(f"{kind}: {', '.join(sorted(names)) or 'none'}" for kind, names in known.items())
        raise UsageError(f"nothing is registered as {name!r}. Known {listed}.")
    return registry.options_model(kinds[0], name).model_json_schema()
