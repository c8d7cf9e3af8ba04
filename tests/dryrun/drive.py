"""Runs recipes on a simulated card, in a process of its own, and prints a JSON line for each.

    python -m tests.dryrun.drive FOLDER CASE ...

Exits with 77 and a reason where a dry run is not possible.
"""

import sys

from rlhf_peft.dryrun.shim import DryRunUnavailable, install

UNAVAILABLE = 77

if __name__ == "__main__":
    try:
        install()
    except DryRunUnavailable as error:
        print(error)
        sys.exit(UNAVAILABLE)
    from tests.dryrun.work import main  # It imports torch, which the shim must come before.

    main(*sys.argv[1:])
