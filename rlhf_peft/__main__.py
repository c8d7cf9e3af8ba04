"""The program's entry point: `rlhf-peft`, `python -m rlhf_peft`, `accelerate launch -m rlhf_peft run ...`."""

from __future__ import annotations

from typing import NoReturn

from . import library_messages


def main() -> NoReturn:
    """Run the program and exit; messages of other libraries are handled from before the first of them is imported."""
    library_messages.install()
    from .cli import main

    main()


if __name__ == "__main__":
    main()
