"""`python -m rlhf_peft` is `rlhf-peft`, so that `accelerate launch -m rlhf_peft run ...` works."""

from rlhf_peft.cli import main

if __name__ == "__main__":
    main()
