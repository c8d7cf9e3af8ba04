"""The small model `builtin:tiny`: a closed world of texts, a judge of answers, and the training of the model."""
