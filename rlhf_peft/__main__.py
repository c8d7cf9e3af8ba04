"""Where the program starts: `rlhf-peft`, `python -m rlhf_peft`, `accelerate launch -m rlhf_peft run ...`."""

from __future__ import annotations

from typing import NoReturn

from . import library_messages


def main() -> NoReturn:
    """Run the program and exit; what other libraries say is taken care of before any of them is imported."""
    library_messages.install()
    from .cli import main

    main()


if __name__ == "__main__":
    main()
