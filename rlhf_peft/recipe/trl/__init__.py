"""Converts configurations of TRL's trainers to recipes."""
