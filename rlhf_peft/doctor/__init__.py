"""Checks what works on this machine: versions, devices, quantizers, the dry run, disks, the hub and plugins."""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Finding
from .machine import (
    check_device,
    check_disk,
    check_dry_run,
    check_hub,
    check_memory,
    check_quantization,
)
from .plugins import check_plugins
from .versions import check_combinations, check_packages, check_python

__all__ = ["Finding", "checks"]


def checks(*, no_plugins: bool = False) -> Iterator[Finding]:
    """Run all checks one after the other; a check that raises is itself a finding."""
    check_functions = (
        check_python,
        check_packages,
        check_combinations,
        check_device,
        check_memory,
        check_quantization,
        check_dry_run,
        check_disk,
        check_hub,
    )
    for check in check_functions if no_plugins else (*check_functions, check_plugins):
        try:
            yield from check()
        except Exception as error:  # a broken installation may raise anything
            yield Finding(check.__name__.removeprefix("check_"), "wrong", f"{type(error).__name__}: {error}")
