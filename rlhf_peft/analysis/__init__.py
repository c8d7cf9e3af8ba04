"""What runs have come to: curves, comparisons, figures, the report."""
