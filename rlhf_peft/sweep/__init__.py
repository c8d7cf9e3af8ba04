"""A recipe run several times, with other values of its keys."""
