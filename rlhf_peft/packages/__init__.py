"""Packages of plugins: install and remove them in the running environment, and write new ones."""

from .installer import PROTECTED, Change, Installer
from .source import entry_modules
from .template import KINDS, write

__all__ = ["KINDS", "PROTECTED", "Change", "Installer", "entry_modules", "write"]
