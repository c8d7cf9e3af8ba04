"""The mode in which tensors on CUDA devices are fake, integers carry values, and everything is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from .compat import (
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    gemm_4bit_is_fused,
    has_own_dtype,
    in_backward,
    is_view,
    lifting_from_cpu,
    tree_leaves,
    tree_map,
    unset_fake_temporarily,
)
from .meter import Card, Meter, flops_of
from .results import Results

EMPTY = frozenset(
    {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"}
)
RANDOM = frozenset(
    {"rand", "randn", "normal_", "uniform_", "randint", "native_dropout", "bernoulli_", "multinomial"}
)
WAITS = frozenset({"nonzero", "unique_dim", "_unique2", "masked_select"})
"""Operators whose result's shape depends on values: the host waits for it."""
MOST_VALUES = 1_000_000
"""Larger floating-point results of integer operators (masks of attention) carry no values."""


def tensors_in(args: Any, kwargs: Any = None) -> list[Tensor]:
    """The tensors among arguments, those in lists of them too, without the cost of a general walk."""
    found: list[Tensor] = []
    for x in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, list | tuple):
            found += [y for y in x if isinstance(y, Tensor)]
    return found


def on_card(x: Any) -> bool:
    """Whether this is a tensor of the simulated card."""
    return isinstance(x, FakeTensor) and x.fake_device.type == "cuda"


def values_of(x: Tensor) -> Tensor | None:
    """The values that a tensor of the card carries, on the CPU; None where they are made up."""
    return getattr(x, "dry_run_values", None)


def is_pinned(x: Tensor) -> bool:
    """Whether a tensor of the CPU is in pinned memory."""
    return getattr(x, "dry_run_pinned", False)


def plain_ids(x: Tensor) -> Tensor:
    """Made-up values of an integer tensor, such as drawn tokens: none of them is a special token."""
    return (torch.arange(x.numel()).reshape(x.shape) % 30 + 20).to(x.dtype)


class DryRun(TorchDispatchMode):
    """Inside, tensors on CUDA devices are fake; see the package's docstring.

    Args:
        card: that is measured for.
        made_up: values of an integer tensor that depends on floating-point numbers, when the host reads it.

    Attributes:
        meter: the counts.
    """

    def __init__(self, card: Card, made_up: Callable[[Tensor], Tensor] = plain_ids) -> None:
        super().__init__()
        self.meter = Meter(card)
        self.made_up = made_up
        self._fake = FakeTensorMode(allow_non_fake_inputs=False)
        self._stack = ExitStack()
        self._results = Results(self._fake)
        self._scalars: dict[torch.dtype, Tensor] = {}

    def __enter__(self) -> DryRun:
        """Begin."""
        self._stack.enter_context(self._fake)
        self._stack.enter_context(lifting_from_cpu())
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """End."""
        super().__exit__(*raised)
        self._stack.close()

    # --- operators ---

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operator."""
        if func is torch.ops.prim.device.default:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name in ("pin_memory", "_pin_memory"):
            return self._pinned(args[0])
        if name == "is_pinned":
            return is_pinned(args[0])
        given = kwargs.get("device")
        device = None if given is None else torch.device(given)
        inputs = [x for x in tensors_in(args, kwargs) if on_card(x)]
        to_card = device is not None and device.type == "cuda"
        if not inputs and not to_card:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name in ("_to_copy", "copy") and device is not None and device.type == "cpu":
            self.meter.read("copy to the host")
            return self.read(args[0], kwargs.get("dtype"))
        if name == "copy_" and not on_card(args[0]):
            self.meter.read("copy to the host")
            value = self.read(args[1])
            with unset_fake_temporarily():
                return args[0].copy_(value)
        if name == "_local_scalar_dense":
            self.meter.read("item")
            value = self.read(args[0])
            with unset_fake_temporarily():
                return value.item()
        if name in ("equal", "allclose"):
            self.meter.read(name)
            return True
        return self._on_card(func, name, args, kwargs, inputs, to_card)

    def _on_card(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], inputs: list[Tensor], to_card: bool
    ) -> Any:
        if self.meter.capture is not None:
            self.meter.capture.runs(func, args, kwargs)
        self.meter.doing = name, in_backward()
        if name in WAITS:
            self.meter.read(name)
        if to_card and not inputs and name == "_to_copy":
            self._uploaded(args[0], waits=not kwargs.get("non_blocking"))
        if name == "copy_" and not on_card(args[1]):
            self._uploaded(args[1], waits=not (args[2] if len(args) > 2 else kwargs.get("non_blocking")))
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            args = (args[0], self._places(args[1]), *args[2:])
        values = self._values(func, name, args, kwargs, to_card)
        if values is None and name in ("eq", "ne"):
            values = finite(name, args)
        out = self._computed(func, name, *self._lifted(args, kwargs), values)
        outputs = [x for x in tensors_in((out,)) if on_card(x)]
        if not is_view(func) and name not in EMPTY:
            self.meter.launched(func, inputs, outputs, flops_of(func, args))
        for x in outputs:
            self.meter.allocated(x)
        self._carry(func, out, values)
        return out

    def _pinned(self, x: Tensor) -> Tensor:
        """A copy in pinned memory."""
        with unset_fake_temporarily():
            copy = x.clone()
        copy.dry_run_pinned = True  # type: ignore[attr-defined]
        return copy

    def _uploaded(self, x: Tensor, *, waits: bool) -> None:
        """A tensor of the CPU is copied to the card; the host waits if it is told to, or the memory is not pinned."""
        self.meter.now.uploads += x.numel() * x.dtype.itemsize
        if waits or not is_pinned(x):
            self.meter.read("copy to the card")

    def _computed(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], values: Any) -> Any:
        """The fake result. Results whose shape depends on values get it from the values."""
        if name in ("nonzero", "_unique2", "unique_dim", "masked_select"):
            if values is None:
                raise RuntimeError(
                    f"{name}: the shape of its result depends on numbers that a dry run does not have"
                )
            with self._fake:
                return tree_map(lambda x: torch.empty(x.shape, dtype=x.dtype, device=args[0].device), values)
        with self._fake:
            if name == "gemm_4bit":
                return self._gemm_4bit(func, args, kwargs)
            if name in (
                "_scaled_dot_product_flash_attention_backward",
                "_scaled_dot_product_efficient_attention_backward",
            ):
                return self._attention_backward(func, args, kwargs)
            if name in ("mm", "bmm", "addmm", "baddbmm") and has_own_dtype(func):
                return _product_in(args, kwargs)
        return self._results.of(func, args, kwargs)

    def _lifted(self, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments with a fake CPU tensor in place of every real one, so that mixed devices are refused."""
        if all(isinstance(x, FakeTensor) for x in tensors_in(args, kwargs)):
            return args, kwargs
        fakes: dict[int, Tensor] = {}

        def lift(x: Any) -> Any:
            if not isinstance(x, Tensor) or isinstance(x, FakeTensor):
                return x
            if x.dim() == 0:  # Such as a Python number.
                if x.dtype not in self._scalars:
                    with self._fake:
                        self._scalars[x.dtype] = torch.empty((), dtype=x.dtype, device="cpu")
                return self._scalars[x.dtype]
            if id(x) not in fakes:
                with self._fake:
                    fakes[id(x)] = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")
            return fakes[id(x)]

        lifted = tree_map(lift, (args, kwargs))
        return lifted[0], lifted[1]

    def _gemm_4bit(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Bitsandbytes' product with a 4-bit weight: many rows are multiplied with a dense copy of the weight."""
        x, _, shape = args[:3]
        inputs, outputs = x.shape[-1], shape[0]
        rows = x.numel() // inputs
        card = (self.meter.card.multiprocessors, *self.meter.card.capability)
        if not gemm_4bit_is_fused(rows, outputs, inputs, x.dtype, card):
            scales = kwargs.get("absmax_8bit")
            room = [(torch.Size(shape), x.dtype)]
            if scales is not None:
                room += [(torch.Size((scales.numel(),)), torch.float32)] * 2
            made = [torch.empty(size, dtype=dtype, device=x.device) for size, dtype in room]
            for tensor in made:
                self.meter.allocated(tensor)
                self.meter.launched(func, [args[1]], [tensor], 0.0)
        out = self._results.of(func, args, kwargs)
        self.meter.allocated(out)
        return out

    def _attention_backward(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Backward of fused attention, which keeps sums in float32, and keys' gradients for every head of queries."""
        query, key = args[1], args[2]
        room = [(query.shape, torch.float32), (query.shape[:3], torch.float32)]
        if key.shape[1] != query.shape[1]:
            room += [((*query.shape[:2], key.shape[2], query.shape[3]), query.dtype)] * 2
        kept = [torch.empty(size, dtype=dtype, device=query.device) for size, dtype in room]
        for tensor in kept:
            self.meter.allocated(tensor)
        out = self._results.of(func, args, kwargs)
        for tensor in tree_leaves(out):
            if on_card(tensor):
                self.meter.allocated(tensor)
        return out

    # --- values ---

    def read(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy on the CPU of what a tensor of the card holds; floating-point numbers are 0, bools True."""
        dtype = dtype or x.dtype
        values = values_of(x)
        with unset_fake_temporarily():
            if values is not None:
                return values.to(dtype, copy=True)
            if x.dtype.is_floating_point:
                return torch.zeros(x.shape, dtype=dtype)
            if x.dtype == torch.bool:
                return torch.ones(x.shape, dtype=dtype)
            return self.made_up(x).to(dtype)

    def _places(self, indices: Any) -> list[Any]:
        """Indices with numbers in place of bools, as the host finds them."""
        out: list[Any] = []
        for index in indices:
            if not isinstance(index, Tensor) or index.dtype not in (torch.bool, torch.uint8):
                out.append(index)
                continue
            if not on_card(index):
                with unset_fake_temporarily():
                    out.extend(index.nonzero(as_tuple=True))
                continue
            self.meter.read("bool index")
            values = values_of(index)
            with unset_fake_temporarily():
                truth = torch.ones(index.shape, dtype=torch.bool) if values is None else values
                places = truth.nonzero(as_tuple=True)
            for place in places:
                with self._fake:
                    fake = torch.empty(place.shape, dtype=torch.int64, device=index.device)
                fake.dry_run_values = place  # type: ignore[attr-defined]
                out.append(fake)
        return out

    def _values(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], to_card: bool) -> Any:
        """The true result on the CPU where nothing in it depends on floating-point data; else None."""
        if name in EMPTY or name in RANDOM:
            return None
        leaves = tensors_in(args, kwargs)
        for x in leaves:
            if on_card(x):
                if values_of(x) is None:
                    return None
            elif x.dtype.is_floating_point and x.dim() > 0:
                return None
        dtype = kwargs.get("dtype")
        if not leaves and name != "arange" and (dtype is None or dtype.is_floating_point):
            return None
        try:
            with unset_fake_temporarily():
                real, options = tree_map(lambda x: values_of(x) if on_card(x) else x, (args, kwargs))
                if to_card:
                    options["device"] = torch.device("cpu")
                options.pop("pin_memory", None)
                out = func(*real, **options)
        except NotImplementedError:
            return None
        large = (
            isinstance(x, Tensor) and x.dtype.is_floating_point and x.numel() > MOST_VALUES
            for x in tree_leaves(out)
        )
        return None if any(large) else out

    def _carry(self, func: Any, out: Any, values: Any) -> None:
        if values is None:
            for x in tensors_in((out,)):
                if on_card(x) and values_of(x) is not None and not is_view(func):
                    del x.dry_run_values  # type: ignore[attr-defined]  # written to with numbers that are made up
            return
        for x, value in zip(tree_leaves(out), tree_leaves(values), strict=True):
            if on_card(x) and isinstance(value, Tensor):
                if x.shape != value.shape:
                    raise RuntimeError(f"{func}: a fake result of {x.shape} for values of {value.shape}")
                x.dry_run_values = value


def _product_in(args: Any, kwargs: dict[str, Any]) -> Tensor:
    """A matrix product with a dtype of its own (`out_dtype`), which older releases of torch cannot fake."""
    if kwargs.get("out") is not None:
        out: Tensor = kwargs["out"]
        return out
    matrices = [x for x in args if isinstance(x, Tensor)][-2:]
    dtype = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.dtype))
    left, right = matrices
    return torch.empty((*left.shape[:-1], right.shape[-1]), dtype=dtype, device=left.device)


def finite(name: str, args: Any) -> Tensor | None:
    """What `isfinite`, `isnan` and `isinf` ask of numbers that are made up: these are finite.

    They are computed as x == x, x != x and |x| == inf, |x| != inf.
    """
    left, right = args[:2]
    if right is left:
        answer = name == "eq"
    elif isinstance(right, float) and math.isinf(right):
        answer = name == "ne"
    else:
        return None
    with unset_fake_temporarily():
        return torch.full(left.shape, answer)
