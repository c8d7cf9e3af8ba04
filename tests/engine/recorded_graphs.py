"""A CPU's stand-in for CUDA graphs: the operators of a function are recorded, and run again on the same tensors.

As with CUDA nothing is computed while a function is captured, and numbers that the host knew then stay what they were.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def storage(x):
    return x.untyped_storage().data_ptr()


class Recorder(TorchDispatchMode):
    """Runs operators and remembers them, and what they have written over."""

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.before = [], {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            for x in tensors(value) if written else ():
                if storage(x) not in self.made:
                    self.before.setdefault(id(x), (x, x.clone()))
        out = func(*args, **kwargs)
        known = {storage(x) for x in tensors((args, kwargs))}
        for x in tensors(out):
            if storage(x) not in known:
                self.made[storage(x)] = x
        self.calls.append((func, args, kwargs, out))
        return out

    def undo(self):
        """Nothing was computed: what is new holds anything, what was there before is as it was."""
        for _, _, _, out in self.calls:
            for x in tensors(out):
                if storage(x) in self.made and x.is_floating_point():
                    x.fill_(torch.nan)
        for x, value in self.before.values():
            x.copy_(value)

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for x, value in zip(tensors(out), tensors(again), strict=True):
                if storage(x) != storage(value):
                    x.copy_(value)


class RecordedGraphs:
    """Stands in for `CudaGraphs`.

    Attributes:
        captured: how many functions were.
        replayed: how often they ran.
    """

    def __init__(self, breaks=None):
        self.captured = self.replayed = 0
        self.breaks = breaks

    @contextmanager
    def aside(self):
        yield

    def capture(self, function):
        self.captured += 1
        recorder = Recorder()
        with recorder:
            function()
        recorder.undo()
        if self.breaks == self.captured:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        def replay():
            self.replayed += 1
            recorder.replay()

        return replay
