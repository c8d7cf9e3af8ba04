"""Align an open language model with human feedback on one consumer GPU."""

__version__ = "0.1.0"
