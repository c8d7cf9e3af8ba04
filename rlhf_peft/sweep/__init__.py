"""Runs a recipe several times with different values of its keys."""
