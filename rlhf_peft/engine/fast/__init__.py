"""Faster ways to compute what the plain modules of `engine` compute.

Each of them is compared with the plain way the first time that it is used on a model (`FastPaths.verified_once`), is
given up with one line where it differs, and is switched off by the recipe's `model.fast`: `false` for all of them, or
a list of the names that stay on. The names are those of `NAMES`.

`dense_weights` alone is not compared: in half precision and in int8 it rounds otherwise by design. What that means for
the completions is measured at every step, as `sampling/sampling_logp_difference`, and weighed by `importance_cap`.
"""

from __future__ import annotations

from .paths import NAMES, FastPaths, tolerance

__all__ = ["NAMES", "FastPaths", "tolerance"]
