"""The recipe of the tests of the command line, and the folder of the repository."""

from pathlib import Path

import rlhf_peft

ROOT = Path(rlhf_peft.__file__).parent.parent


RECIPE = """\
version: 1
name: small
model:
  path: builtin:tiny
stages:
  - stage: sft
    dataset:
      path: rows.jsonl
"""
