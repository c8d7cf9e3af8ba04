"""Finds built-ins and plugins, makes what a recipe names, and calls observers.

A plugin is first checked alone: its import, its hook signatures and everything it registers. It is registered only when
all of it is in order; otherwise `Registry.broken` has it with the reason. Built-ins are registered in the same way.
Plugins named on the command line must work; an installed plugin that does not work is left out.
"""

from .bases import base_spec, chosen_quantizer
from .core import DEFAULT_SAMPLER, Registry
from .isolation import import_safely, load_file
from .records import BrokenPlugin, Entry, LoadedPlugin

__all__ = [
    "DEFAULT_SAMPLER",
    "BrokenPlugin",
    "Entry",
    "LoadedPlugin",
    "Registry",
    "base_spec",
    "chosen_quantizer",
    "import_safely",
    "load_file",
]
