"""`python -m rlhf_peft.planning.exact FILE`: measures recipes on a simulated card.

FILE is a request as `plan` writes it. A line of JSON is printed for each of its recipes.
"""

import sys

from ...dryrun.shim import DryRunUnavailable, install

UNAVAILABLE = 77
"""Exit code: a dry run is not possible on this machine; stderr says why."""

if __name__ == "__main__":
    try:
        install()
    except DryRunUnavailable as error:
        print(error, file=sys.stderr)
        sys.exit(UNAVAILABLE)
    from .measure import main  # It imports torch, which the shim must come before.

    main(sys.argv[1])
