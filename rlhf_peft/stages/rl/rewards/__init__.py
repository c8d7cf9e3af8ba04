"""What runs, checks and scales rewards; `rewarding.py` beside it adds them up."""
