"""The lean step itself: attention over prompts that are held once, and the order of the products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...head import HALF
from ...kv_cache import GrowingCache
from .architecture import base_of, has_the_shape
from .columns import Columns
from .groups import Rows
from .own_tokens import FixedTokens, GrowingTokens
from .row_vectors import RowVectors

FEW = 8
"""Rows up to which a CPU reads one copy of its prompt for each in less time than it takes to bring them together."""


@dataclass(slots=True)
class _Layer:
    """The parts of one layer."""

    before: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Tensor]
    attention: Any
    out: Any
    after: Callable[[Tensor], Tensor]
    gate_up: Callable[[Tensor], Tensor]
    act: Any
    down: Any

    @classmethod
    def of(cls, layer: Any, layout: Any) -> _Layer:
        """A layer's parts in a layout, where they are used."""
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            layout.norm(layer.input_layernorm),
            layout.product(attention.q_proj, attention.k_proj, attention.v_proj),
            attention,
            layout.product(attention.o_proj),
            layout.norm(layer.post_attention_layernorm),
            layout.product(mlp.gate_proj, mlp.up_proj),
            mlp.act_fn,
            layout.product(mlp.down_proj),
        )


class LeanDecoder:
    """Writes one token a row at a time, after prompts that were read once.

    Rows of one prompt attend to its keys and values where they stand, and to their own. Letters: G prompts of P tokens,
    B rows, t tokens of their own, K heads of keys and values, each for so many (Q) heads of queries, d their size, H
    the width. Vectors are columns [H, B] or rows [B, H], as the layout has them.

    Args:
        model: that `supports` says yes to.
        read: the cache after the prompts were read, [G, K, P, d] a layer.
        mask: [G, P], 1 where a token of a prompt is real.
        which: [B] each row's prompt.
        room: most tokens that a row may be given.
        layout: of the vectors; None: columns on a CPU, rows on a card.

    Attributes:
        room: most tokens that a row may be given.
    """

    def __init__(
        self,
        model: Any,
        read: GrowingCache,
        mask: Tensor,
        which: Tensor,
        room: int,
        layout: Columns | RowVectors | None = None,
    ) -> None:
        self._layout: Any = layout or (Columns() if which.device.type == "cpu" else RowVectors())
        self.room = room
        trunk = model.base_model
        self._embed, self._rotary = trunk.embed_tokens, trunk.rotary_emb
        self._layers = [_Layer.of(layer, self._layout) for layer in trunk.layers]
        self._head_layer = model.get_output_embeddings()
        self._norm, self._head = self._layout.norm(trunk.norm), self._layout.product(self._head_layer)
        self._read = [
            (layer.keys[:, :, : layer.length], layer.values[:, :, : layer.length]) for layer in read.layers
        ]
        self._own: GrowingTokens | FixedTokens = GrowingTokens(len(self._layers), room)
        hidden = torch.where(mask.bool(), 0.0, -torch.inf)
        self._hidden = None if bool(mask.all()) else hidden.to(self._embed.weight.dtype)
        attention, heads = trunk.layers[0].self_attn, self._read[0][0].shape[1]
        queries = base_of(attention.q_proj).out_features // attention.head_dim
        self._scale = self._embed.weight.new_ones(queries + heads, 1)
        self._scale[:queries] = attention.scaling
        self._heads = heads
        self._own_hidden: Tensor | None = None
        self._rows: Rows | None
        self._follow(which)

    @staticmethod
    def supports(model: Any, *, dense: bool = True) -> bool:
        """Whether the model has the shape; see `architecture.has_the_shape`."""
        return has_the_shape(model, dense=dense)

    def fix(self) -> FixedTokens:
        """Hold the rows' own tokens in buffers of fixed size; before the first step, and not with columns."""
        assert self._rows is not None
        self._own = FixedTokens(len(self._layers), self._read[0][0], len(self._rows.group), self.room)
        return self._own

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows; prompts that none of them follows are let go."""
        self._own.select(rows)
        if self._rows is not None:
            self._follow(self._rows.group[rows])
        elif self._hidden is not None:
            self._hidden = self._hidden[rows]

    def _follow(self, which: Tensor) -> None:
        """Each row's prompt; prompts that none follows are let go, and few rows have their own copies from now on."""
        if len(which) <= FEW and isinstance(self._layout, Columns) and isinstance(self._own, GrowingTokens):
            self._own.put_before(self._read, which)
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
        layout, count = self._layout, len(tokens)
        rows = self._embed(tokens)
        turn = self._turns(*self._rotary(rows, positions))
        self._own_hidden = self._own.hidden()
        x = layout.vectors(rows).contiguous()
        for number, layer in enumerate(self._layers):
            attended = self._attend(number, layer, layout.rows(layer.qkv(layer.before(x)), count), turn)
            layer.out.add_to(x, layout.vectors(attended))
            gate, up = layer.gate_up(layer.after(x)).chunk(2, dim=layout.features)
            layer.down.add_to(x, layer.act(gate) * up)
        self._own.advance()
        return layout.logits(self._head, self._head_layer, self._norm(x), count)

    def _turns(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[B, heads, d]: what queries, scaled, and keys are multiplied by, themselves and with halves exchanged."""
        half = cos.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cos * self._scale, signed * self._scale

    def _attend(self, number: int, layer: _Layer, qkv: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """[B, K * Q * d] for [B, (K * Q + 2 K) * d]."""
        attention, count, heads = layer.attention, len(turn[0]), self._heads
        size = attention.head_dim
        rows = qkv.view(count, -1, size)
        turned, v = rows[:, :-heads], rows[:, -heads:].unsqueeze(2)
        if hasattr(attention, "q_norm"):
            q, k = turned[:, :-heads], turned[:, -heads:]
            turned = torch.cat((_normed(attention.q_norm, q), _normed(attention.k_norm, k)), dim=1)
        turned = _turned(turned, *turn)
        own_keys, own_values = self._own.update(number, turned[:, -heads:].unsqueeze(2), v)
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
        if self._own_hidden is not None:
            own += self._own_hidden
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


def _normed(norm: Any, x: Tensor) -> Tensor:
    """RMS norm over the last dimension."""
    return nn.functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
