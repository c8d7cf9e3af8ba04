"""One decoding step of Llama-shaped models: the same modules' weights, by the fewest operations.

Decoding reads every key and value for every token, and rows of one prompt would read that prompt's once each; here
they read them together (Hydragen, Juravsky et al. 2024, arXiv:2402.05099), and they are held once. The first step is
computed both ways, and transformers' own stays in use where they differ.

Left out on purpose: every model that is not embeddings, layers of [norm, attention with rotary positions, norm, gated
MLP], norm, head; sliding windows; quantized layers and adapters that are not merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ..compat import attends_to_all
from ..head import HALF, full_product
from ..kv_cache import GrowingCache, GrowingLayer
from .small_products import Dense, quick_size

TRUNK = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
NARROW = 16
"""Columns from which their layout makes no difference to a product."""
FEW = 8
"""Rows up to which a CPU reads one copy of its prompt for each in less time than it takes to bring them together."""
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class Rows:
    """Which prompt each row follows, and its place among the rows of that prompt.

    Args:
        which: [B] int64, the prompt of each row.

    Attributes:
        prompts: [G] int64, those that rows follow.
        most: rows of one prompt, n.
        shape: (G, n) where every prompt has as many rows, one after the other; (B,) otherwise.
    """

    def __init__(self, which: Tensor) -> None:
        prompts, self.group, counts = which.unique(return_inverse=True, return_counts=True)
        self.prompts, self.most = prompts, int(counts.max())
        order = self.group.argsort(stable=True)
        begins = counts.cumsum(0) - counts
        self.slot = torch.empty_like(self.group)
        self.slot[order] = torch.arange(len(which), device=which.device) - begins[self.group[order]]
        even = len(which) == len(prompts) * self.most and bool((order[1:] > order[:-1]).all())
        self.shape = (len(prompts), self.most) if even else (len(which),)

    def gather(self, rows: Tensor) -> Tensor:
        """[G, n, ...]: rows [*shape, ...] by prompt and place, 0 where there is none."""
        if len(self.shape) == 2:
            return rows
        placed = rows.new_zeros(len(self.prompts), self.most, *rows.shape[1:])
        return placed.index_put_((self.group, self.slot), rows)

    def spread(self, placed: Tensor) -> Tensor:
        """[*shape, ...]: the rows again."""
        return placed if len(self.shape) == 2 else placed[self.group, self.slot]


class _Product:
    """Linear layers that read the same vectors; one product, where their weights may be moved together.

    Args:
        layers: the weights of `Dense` ones become views of one matrix.
    """

    def __init__(self, *layers: Any) -> None:
        if len(layers) > 1 and all(isinstance(layer, Dense) for layer in layers):
            joined = [_join(layers)]
        else:
            joined = [layer.weight for layer in layers]
        self._weights = joined
        self._low_rank = _LowRank.of(layers)
        self._bias: Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            biases = [layer.weight.new_zeros(()) if layer.bias is None else layer.bias for layer in layers]
            every = zip(biases, layers, strict=True)
            self._bias = torch.cat([bias.expand(layer.weight.shape[0]) for bias, layer in every]).unsqueeze(
                -1
            )

    def __call__(self, x: Tensor) -> Tensor:
        """[out, B] for [in, B]."""
        x = _laid(x)
        products = [weight @ x for weight in self._weights]
        out = products[0] if len(products) == 1 else torch.cat(products)
        if self._low_rank is not None:
            self._low_rank.add_to(out, x)
        return out if self._bias is None else out.add_(self._bias)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the product [out, B] of a single layer."""
        x = _laid(x)
        total.addmm_(self._weights[0], x)
        if self._low_rank is not None:
            self._low_rank.add_to(total, x)
        if self._bias is not None:
            total.add_(self._bias)


@dataclass(frozen=True, slots=True)
class _LowRank:
    """Adapters that are not in the weights of layers which read the same vectors.

    Attributes:
        down: [sum of r, in].
        ups: where a layer's outputs begin and end, where its part of `down`'s result does, and its B [out, r], scaled.
    """

    down: Tensor
    ups: tuple[tuple[slice, slice, Tensor], ...]

    @classmethod
    def of(cls, layers: Sequence[Any]) -> _LowRank | None:
        """Those of some layers; None where no layer has one."""
        downs, ups, row, rank = [], [], 0, 0
        for layer in layers:
            rows, row = slice(row, row + layer.weight.shape[0]), row + layer.weight.shape[0]
            parts = getattr(layer, "low_rank", None)
            if parts is not None:
                up, down = parts
                ups.append((rows, slice(rank, rank + len(down)), up))
                downs.append(down)
                rank += len(down)
        return cls(torch.cat(downs), tuple(ups)) if downs else None

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add B A x to outputs [out, B], for x [in, B]."""
        low = self.down @ x
        for rows, part, up in self.ups:
            out[rows].addmm_(up, low[part])


@dataclass(slots=True)
class _Layer:
    """The parts of one layer."""

    before: _Norm
    qkv: _Product
    attention: Any
    out: _Product
    after: _Norm
    gate_up: _Product
    act: Any
    down: _Product

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        """A layer's parts, where they are used."""
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            _Norm(layer.input_layernorm),
            _Product(attention.q_proj, attention.k_proj, attention.v_proj),
            attention,
            _Product(attention.o_proj),
            _Norm(layer.post_attention_layernorm),
            _Product(mlp.gate_proj, mlp.up_proj),
            mlp.act_fn,
            _Product(mlp.down_proj),
        )


class LeanDecoder:
    """Writes one token a row at a time, after prompts that were read once.

    Rows of one prompt attend to its keys and values where they stand, and to their own. Vectors are columns, so that
    the weights stand on the left of every product, which is how a CPU multiplies few rows fastest. Letters: G prompts
    of P tokens, B rows (filled up to a number that is quick), t tokens of their own, K heads of keys and values, each
    for so many (Q) heads of queries, d their size, H the width.

    Args:
        model: that `supports` says yes to.
        read: the cache after the prompts were read, [G, K, P, d] a layer.
        mask: [G, P], 1 where a token of a prompt is real.
        which: [B] each row's prompt.
        room: most tokens that a row may be given.
    """

    def __init__(self, model: Any, read: GrowingCache, mask: Tensor, which: Tensor, room: int) -> None:
        trunk = model.base_model
        self._embed, self._rotary = trunk.embed_tokens, trunk.rotary_emb
        self._layers = [_Layer.of(layer) for layer in trunk.layers]
        self._head_layer = model.get_output_embeddings()
        self._norm, self._head = _Norm(trunk.norm), _Product(self._head_layer)
        self._read = [
            (layer.keys[:, :, : layer.length], layer.values[:, :, : layer.length]) for layer in read.layers
        ]
        self._own = [GrowingLayer(room) for _ in self._layers]
        hidden = torch.where(mask.bool(), 0.0, -torch.inf)
        self._hidden = None if bool(mask.all()) else hidden.to(self._embed.weight.dtype)
        attention, heads = trunk.layers[0].self_attn, self._read[0][0].shape[1]
        queries = len(attention.q_proj.weight) // attention.head_dim
        self._scale = self._embed.weight.new_ones(queries + heads, 1)
        self._scale[:queries] = attention.scaling
        self._heads = heads
        self._rows: Rows | None
        self._follow(which)

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether the model has the shape, as far as its modules tell."""
        trunk = model.base_model
        return (
            {name for name, _ in trunk.named_children()} == TRUNK
            and attends_to_all(model.config)
            and all(_is_layer(layer) for layer in trunk.layers)
        )

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows; prompts that none of them follows are let go."""
        for layer in self._own:
            if layer.is_initialized:
                layer.select(rows)
        if self._rows is not None:
            self._follow(self._rows.group[rows])
        elif self._hidden is not None:
            self._hidden = self._hidden[rows]

    def _follow(self, which: Tensor) -> None:
        """Each row's prompt; prompts that none follows are let go, and few rows have their own copies from now on."""
        if len(which) <= FEW and which.device.type == "cpu":
            for layer, (keys, values) in zip(self._own, self._read, strict=True):
                layer.put_before(keys[which], values[which])
            self._hidden = None if self._hidden is None else self._hidden[which]
            self._rows, self._read = None, []
            return
        self._rows = Rows(which)
        left = self._rows.prompts
        if len(left) < len(self._read[0][0]):
            for number, (keys, values) in enumerate(
                self._read
            ):  # One layer after the other: the old ones go.
                self._read[number] = (keys[left], values[left])
            self._hidden = None if self._hidden is None else self._hidden[left]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row.

        Args:
            tokens: [B] int64.
            positions: [B, 1].
        """
        rows = self._embed(tokens)
        turn = self._turns(*self._rotary(rows, positions))
        x = self._columns(rows).contiguous()
        for number, layer in enumerate(self._layers):
            attended = self._attend(number, layer, layer.qkv(layer.before(x)), turn)
            layer.out.add_to(x, self._columns(attended))
            gate, up = layer.gate_up(layer.after(x)).chunk(2)
            layer.down.add_to(x, layer.act(gate) * up)
        return self._logits(self._norm(x))[: len(tokens)]

    def _logits(self, x: Tensor) -> Tensor:
        """[B, V] for [H, B]; in float32 where CUDA multiplies in half precision."""
        full = full_product(x.t(), self._head_layer.weight)
        if full is None:
            return self._head(x).t()
        return full if self._head_layer.bias is None else full + self._head_layer.bias

    def _columns(self, rows: Tensor) -> Tensor:
        """[H, B] for rows [B, H], filled up."""
        missing = quick_size(len(rows), rows.device) - len(rows)
        return (torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows).t()

    def _turns(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[B, heads, d]: what queries, scaled, and keys are multiplied by, themselves and with halves exchanged."""
        half = cos.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cos * self._scale, signed * self._scale

    def _attend(self, number: int, layer: _Layer, qkv: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """[B, K * Q * d] for [(K * Q + 2 K) * d, B]."""
        attention, count, heads = layer.attention, len(turn[0]), self._heads
        size = attention.head_dim
        rows = qkv.t()[:count].contiguous().view(count, -1, size)
        turned, v = rows[:, :-heads], rows[:, -heads:].unsqueeze(2)
        if hasattr(attention, "q_norm"):
            q, k = turned[:, :-heads], turned[:, -heads:]
            turned = torch.cat((_normed(attention.q_norm, q), _normed(attention.k_norm, k)), dim=1)
        turned = _turned(turned, *turn)
        own_keys, own_values = self._own[number].update(turned[:, -heads:].unsqueeze(2), v)
        if self._rows is None:
            scores = _per_head(
                turned[:, :-heads].reshape(count, heads, -1, size), own_keys.transpose(-1, -2), _scores
            )
            if self._hidden is not None:
                scores[..., : self._hidden.shape[1]] += self._hidden[:, None, None, :]
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(qkv.dtype)
            return _per_head(weights, own_values).view(count, -1)
        read_keys, read_values = self._read[number]
        length = read_keys.shape[2]
        q = turned[:, :-heads].reshape(*self._rows.shape, heads, -1, size)
        own = _per_head(q, own_keys.transpose(-1, -2), _scores)
        scores = torch.cat((self._to_read(q, read_keys), own), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        out = _per_head(weights[..., length:], own_values)
        out += self._of_read(weights[..., :length], read_values)
        return out.view(count, -1)

    def _to_read(self, q: Tensor, keys: Tensor) -> Tensor:
        """[..., K, Q, P]: scores of the prompts' tokens."""
        assert self._rows is not None
        placed = self._rows.gather(q).transpose(1, 2)
        scores = _scores(placed.flatten(2, 3).flatten(0, 1), keys.flatten(0, 1).transpose(-1, -2))
        scores = scores.view(*placed.shape[:-1], -1)
        if self._hidden is not None:
            scores = scores + self._hidden[:, None, None, None, :]
        return self._rows.spread(scores.transpose(1, 2))

    def _of_read(self, weights: Tensor, values: Tensor) -> Tensor:
        """[..., K, Q, d]: the prompts' part of the output."""
        assert self._rows is not None
        placed = self._rows.gather(weights).transpose(1, 2)
        out = torch.bmm(placed.flatten(2, 3).flatten(0, 1), values.flatten(0, 1))
        return self._rows.spread(out.view(*placed.shape[:-1], -1).transpose(1, 2))


def _join(layers: Sequence[Any]) -> Tensor:
    """[sum of out, in]: the layers' weights in one matrix, which they share from now on."""
    before: Tensor | None = layers[0].joined
    if before is not None and all(layer.joined is before for layer in layers):
        return before
    weights = [layer.weight for layer in layers]
    joined = torch.cat([weight.detach() for weight in weights])
    for layer, weight in zip(layers, joined.split([len(weight) for weight in weights]), strict=True):
        layer.weight, layer.joined = nn.Parameter(weight, requires_grad=False), joined
    return joined


def _laid(x: Tensor) -> Tensor:
    """Columns one after the other, where they are few: a CPU multiplies 2 of them in a fifth of the time then."""
    return x.t().contiguous().t() if x.shape[1] < NARROW else x


def _scores(left: Tensor, right: Tensor) -> Tensor:
    """Products of queries and keys; in float32 where CUDA multiplies in half precision, as its fused attention does."""
    if left.device.type == "cuda" and left.dtype in HALF:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right)


def _per_head(
    left: Tensor, right: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = torch.bmm
) -> Tensor:
    """[..., K, Q, m]: a product of [..., K, Q, n] and [B, K, n, m] for each row and head."""
    product = multiply(left.flatten(0, -3), right.flatten(0, 1))
    return product.view(*left.shape[:-1], right.shape[-1])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on [B, heads, d]."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.cat((x[..., half:], x[..., :half]), dim=-1), sin)


class _Norm:
    """RMS norm of columns [H, B]: x / sqrt(mean x^2 + eps) * w."""

    def __init__(self, norm: Any) -> None:
        size = len(norm.weight)
        self._weight = (norm.weight.float() * size**0.5).unsqueeze(-1)
        self._epsilon = norm.variance_epsilon * size

    def __call__(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=0, keepdim=True, dtype=torch.float32)
        by = size.square_().add_(self._epsilon).rsqrt_()
        return (x * by).mul_(self._weight).to(x.dtype)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """RMS norm over the last dimension."""
    return rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _is_layer(layer: Any) -> bool:
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if {name for name, _ in layer.named_children()} != LAYER or attention is None or mlp is None:
        return False
    inside = {name for name, _ in attention.named_children()} - {"rotary_emb"}
    linear = [getattr(attention, name, None) for name in ATTENTION]
    linear += [getattr(mlp, name, None) for name in MLP - {"act_fn"}]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in NORMS & inside]
    return (
        inside in (ATTENTION, ATTENTION | NORMS)
        and {name for name, _ in mlp.named_children()} == MLP
        and all(isinstance(part, nn.Linear) and type(part).__name__ in ("Linear", "Dense") for part in linear)
        and all(hasattr(norm, "variance_epsilon") and hasattr(norm, "weight") for norm in norms)
        and hasattr(attention, "head_dim")
        and hasattr(attention, "scaling")
    )
