"""`python -m tests.benchmarks.one CONTENDER CASE JSON`: one contender on one case, in a process of its own."""

import json
import sys
import warnings
from importlib import import_module

if __name__ == "__main__":
    contender, name, case = sys.argv[1:4]
    warnings.simplefilter("ignore")
    import_module(f"tests.benchmarks.{contender}").CASES[name](json.loads(case))
