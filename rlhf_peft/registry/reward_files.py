"""Functions of files that are given as rewards, as by `--reward FILE.py:FUNC`."""

from __future__ import annotations

from pathlib import Path

from ..errors import PluginError
from ..kit.functions import FileFunction
from ..kit.functions.process import NotImported, inspect_function
from ..recipe.messages import did_you_mean


def examined_function(file: Path, name: str, where: str) -> FileFunction:
    """A function of a file, after a worker process has imported it to find out whether it is async.

    Args:
        file: that defines the function.
        name: of the function.
        where: begins every error message.

    Raises:
        PluginError: there is no such file, it cannot be imported, or it does not define the function.
    """
    if not file.is_file():
        raise PluginError(f"{where}: {file}: no such file")
    target = FileFunction(file, name).target
    try:
        info = inspect_function(target)
    except NotImported as error:
        if error.functions is None:
            raise PluginError(
                f"{where}: {str(error).rstrip('.')}. Expected a file that Python can import and that holds the "
                f"function {name}; try it:  python {target.where}"
            ) from None
        info = {"callable": False, "functions": error.functions}
    if not info["callable"]:
        names = info["functions"]
        raise PluginError(
            f"{where}: the file has no function {name}.{did_you_mean(name, names)} "
            f"It has: {', '.join(names) or 'none'}."
        )
    return FileFunction(Path(target.where), name, is_async=info["is_async"])
