"""What every stage needs of a run: context, checkpoints, ranks, token budgets, optimizers, fingerprints."""
