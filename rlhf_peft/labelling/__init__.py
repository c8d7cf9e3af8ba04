"""The human in human feedback: pairs, a page to compare them on, a store of judgements, and what they come to."""
