"""Private and unstable names of torch, transformers and bitsandbytes that a dry run needs.

Each entry says what breaks without it. A dry run is a tool for tests and plans: nothing of a real run imports this.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor

# Fake tensors are private in torch; there is no public tensor with a device, gradients and no data.
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)

# Some functions of torch.cuda take a device without an index, others refuse it; this one tells.
from torch.cuda._utils import _get_device_index as device_index

# A mode sees every operator of torch; the walk over arguments is the one that torch itself uses for them.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "Params4bit",
    "TorchDispatchMode",
    "device_index",
    "efficient_attention",
    "fake_apply",
    "flash_attention",
    "gemm_4bit_is_fused",
    "has_own_dtype",
    "in_backward",
    "in_fake_kernel",
    "is_plain_view",
    "is_pure",
    "is_view",
    "lifting_from_cpu",
    "math_attention",
    "stand_in_for_triton",
    "treat_fakes_as_real",
    "tree_leaves",
    "tree_map",
    "unset_fake_temporarily",
    "written_by",
]

VIEWS = frozenset(
    {"_unsafe_view", "_reshape_alias", "lift_fresh", "lift", "detach", "alias", "set_", "resize_"}
)
"""Operators that compute nothing and whose schema does not say so."""


def is_view(operator: Any) -> bool:
    """Whether an operator gives another view of its input: no kernel is launched. `_schema` is private."""
    if operator.overloadpacket.__name__ in VIEWS:
        return True
    returns = operator._schema.returns
    return any(out.alias_info is not None and not out.alias_info.is_write for out in returns)


_PURE: dict[Any, bool] = {}


def is_plain_view(operator: Any) -> bool:
    """Whether an operator gives another view of its input, and leaves the input as it is."""
    return is_view(operator) and not operator._schema.is_mutable


def is_pure(operator: Any) -> bool:
    """Whether an operator's results are new tensors that depend on its arguments alone. `_schema` is private."""
    if operator not in _PURE:
        schema = operator._schema
        _PURE[operator] = not any(x.alias_info is not None for x in (*schema.arguments, *schema.returns))
    return _PURE[operator]


@contextmanager
def in_fake_kernel(mode: FakeTensorMode) -> Iterator[None]:
    """Inside, fake tensors are what they are made of, tensors without data: an operator computes its shapes alone."""
    with unset_fake_temporarily(), in_kernel_invocation_manager(mode):
        yield


def written_by(operator: Any, args: Any) -> list[Tensor]:
    """The tensors among positional arguments that an operator writes to."""
    pairs = zip(operator._schema.arguments, args, strict=False)
    return [
        x for argument, x in pairs
        if isinstance(x, Tensor) and argument.alias_info is not None and argument.alias_info.is_write
    ]  # fmt: skip


def has_own_dtype(operator: Any) -> bool:
    """Whether an operator is the overload of a matrix product that is told the dtype of its result."""
    return str(operator._overloadname).startswith("dtype")


def in_backward() -> bool:
    """Whether autograd is running a backward pass now; peaks of the two passes could not be told apart without it."""
    return bool(torch._C._current_graph_task_id() != -1)


@contextmanager
def lifting_from_cpu() -> Iterator[None]:
    """`torch.tensor(..., device="cuda")` makes its data on the CPU and copies it, as fake tensors need it."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


# The kernels between which `scaled_dot_product_attention` chooses on a card.
flash_attention = torch.ops.aten._scaled_dot_product_flash_attention
efficient_attention = torch.ops.aten._scaled_dot_product_efficient_attention


def math_attention(*args: Any, **kwargs: Any) -> Tensor:
    """Attention by plain products, which CUDA takes where no fused kernel can."""
    out: Tensor = torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
    return out


class Params4bit(FakeTensor):
    """A quantized weight of bitsandbytes, which other libraries know by the name of its class."""


def fake_apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` for fake parameters: torch's own would exchange their contents, and lose what they carry."""
    for module in self.children() if recurse else ():
        module._apply(fn)
    for key, parameter in self._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            new = fn(parameter)
        is_same = new is parameter or (new.dtype == parameter.dtype and new.device == parameter.device)
        if is_same and isinstance(parameter, FakeTensor):
            continue
        if isinstance(new, FakeTensor) or isinstance(parameter, FakeTensor):
            self._parameters[key] = nn.Parameter(new.detach(), requires_grad=parameter.requires_grad)
        else:
            parameter.data = new
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = fn(buffer)
    return self


def treat_fakes_as_real() -> None:
    """Make torch and transformers do with fake tensors what they do with real ones, for the rest of the process.

    transformers takes a fake tensor for a sign that the model is being traced, and then never leaves out a mask.
    """
    nn.Module._apply = fake_apply  # type: ignore[method-assign]
    for name in ("init_gpu_context", "init_cuda_context"):  # They make a real tensor on the card.
        if hasattr(fake_tensor, name):
            setattr(fake_tensor, name, lambda *args, **kwargs: None)
    # torch's own reads one element after the other.
    FakeTensor.tolist = lambda self: self.cpu().tolist()  # type: ignore[method-assign]
    from transformers.utils import import_utils

    for module in [
        import_utils,
        *(m for name, m in list(sys.modules.items()) if name.startswith("transformers.")),
    ]:
        if "is_fake_tensor" in vars(module):
            module.is_fake_tensor = lambda tensor: False


def stand_in_for_triton(launched: Callable[[list[Tensor]], None]) -> None:
    """Let kernels of Triton (TRL has some) compute nothing, for the rest of the process; their outputs are made before.

    Args:
        launched: is called with the tensors that a kernel is given.
    """
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
        launched([x for x in (*args, *kwargs.values()) if isinstance(x, FakeTensor)])

    JITFunction.run = run


_CHOICE: list[Callable[..., bool]] = []


def gemm_4bit_is_fused(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, card: tuple[int, int, int]
) -> bool:
    """Whether bitsandbytes' CUDA backend multiplies with 4-bit weights directly, or makes the dense weight first.

    The rule is a private function. Where it is not there any more, up to 64 rows are taken to be multiplied directly.

    Args:
        rows: of the input.
        outputs: of the layer.
        inputs: of the layer.
        dtype: of the input.
        card: number of multiprocessors, and major and minor compute capability.
    """
    if not _CHOICE:
        _CHOICE.append(_bitsandbytes_rule(card))
    return _CHOICE[0](dtype, rows, outputs, inputs)


def _bitsandbytes_rule(card: tuple[int, int, int]) -> Callable[..., bool]:
    most = 1536
    try:
        kernels = importlib.import_module("bitsandbytes.backends.cuda.ops")
        rule = kernels._gemm_4bit_use_custom_cuda
    except (ImportError, AttributeError, OSError):
        return lambda dtype, rows, outputs, inputs: rows <= 64
    kernels._gpu_dispatch_props = lambda index: card  # type: ignore[attr-defined]
    return lambda dtype, rows, outputs, inputs: rows <= most and bool(rule(0, dtype, rows, outputs, inputs))
