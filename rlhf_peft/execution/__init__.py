"""Executes runs: the checks before a run, the run itself, and resuming it after an interruption."""
