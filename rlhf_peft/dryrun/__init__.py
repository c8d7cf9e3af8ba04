"""Runs on a CUDA card that is not in this machine, to find errors and to measure memory, launches and host reads.

Tensors "on the card" are fake: they have shapes, dtypes, devices and gradients, but no floating-point data. Integer
and bool tensors carry their values beside them, because lengths, masks and ids decide what a program does next. Only
what depends on floating-point numbers is made up. Tensors on the CPU are real.

A dry run needs a process of its own, in which `shim.install` is called before torch is imported; `process.begin` then
gives the mode in which everything runs on the card.

It needs a C++ compiler, for 30 lines that tell torch that there is a card. Without one `DryRunUnavailable` is raised.

What it cannot see: the numbers themselves, the speed of kernels, and errors inside them.
"""
