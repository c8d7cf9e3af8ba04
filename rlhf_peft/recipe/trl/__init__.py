"""Configurations of TRL as recipes."""
