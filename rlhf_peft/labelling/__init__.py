"""Labelling: pairs of answers, a web page to compare them, a store of judgements, and their evaluation."""
