"""How a run goes: what is checked and loaded before it, the run itself, and where it goes on after an interruption."""
