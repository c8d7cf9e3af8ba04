"""A warning that code of this repository raises, for the tests of what becomes of such warnings."""

import warnings


def warn_of_something_old() -> None:
    warnings.warn("something old is used", FutureWarning, stacklevel=2)
