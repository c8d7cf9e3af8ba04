"""What is measured on an NVIDIA GPU: `python -m tests.benchmarks --gpu`.

One case after the other, those that tell most first. What a case measured is a JSON line in a file as soon as it ends;
a case that fails, or takes longer than its limit, does not stop the others. The cases of a model share its folder and,
where they follow one another, the loaded base.
"""
