"""The embedded default, `builtin:tiny`: a small world of text, its judge, and how its model is made."""
