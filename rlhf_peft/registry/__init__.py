"""Finds built-ins and plugins, makes what a recipe names, and tells observers.

A plugin is tried alone first: its import, its hook signatures and everything it registers. Only when all
of it is in order does it join; else `broken` has it with the reason and nothing of it stays. Built-ins
enter by the same door. Plugins named on the command line must work; one that is merely installed may not.
"""

from .bases import base_spec, chosen_quantizer
from .core import DEFAULT_SAMPLER, Registry
from .isolation import import_safely, load_file
from .records import Broken, Entry, Loaded

__all__ = [
    "DEFAULT_SAMPLER",
    "Broken",
    "Entry",
    "Loaded",
    "Registry",
    "base_spec",
    "chosen_quantizer",
    "import_safely",
    "load_file",
]
