"""Analysis of runs: curves, comparisons, plots, the report."""
