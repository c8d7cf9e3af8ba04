"""Prints which packages of this environment are not those of constraints.txt, in a few lines."""

import importlib.metadata

from constraints import ROOT, canonical

here = {canonical(found.name): found.version for found in importlib.metadata.distributions()}
pins = [
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
]
changed = [
    f"{name} {version} -> {here[canonical(name)]}"
    for name, version in pins
    if canonical(name) in here and here[canonical(name)].split("+")[0] != version
]
print(f"changed since constraints.txt: {', '.join(changed) or 'nothing'}")
