"""The memory and the seconds of a recipe, measured by a dry run on a simulated card: `rlhf-peft plan --exact`.

`stand_in` puts a model without weights and rows of the planned length in the place of the recipe's own. Each stage is
run with a model of a few layers, in a process of its own (`__main__`, `measure`), once for each of two depths.
`extrapolate` goes on from there to the model's own number of layers, and `plan` has the whole.
"""
