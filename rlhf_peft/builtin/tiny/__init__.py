"""The embedded default, `builtin:tiny`: a small world of text, its judge, and the script that makes its model."""
