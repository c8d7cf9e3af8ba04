"""One decoding step of Llama-shaped models: the same modules' weights, by the fewest operations.

Decoding reads every key and value for every token, and rows of one prompt would read that prompt's once each; here
they read them together (Hydragen, Juravsky et al. 2024, arXiv:2402.05099), and they are held once. The first step is
computed both ways, and transformers' own stays in use where they differ.

Left out on purpose: every model that is not embeddings, layers of [norm, attention with rotary positions, norm, gated
MLP], norm, head; sliding windows; quantized layers and adapters that are not merged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from .kv_cache import GrowingCache, GrowingLayer

TRUNK = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class Rows:
    """Which prompt each row follows, and its place among the rows of that prompt.

    Args:
        which: [B] int64, the prompt of each row.
    """

    def __init__(self, which: Tensor) -> None:
        prompts, self.group, counts = which.unique(return_inverse=True, return_counts=True)
        self.prompts, self.most = prompts, int(counts.max())
        order = self.group.argsort(stable=True)
        begins = counts.cumsum(0) - counts
        self.slot = torch.empty_like(self.group)
        self.slot[order] = torch.arange(len(which), device=which.device) - begins[self.group[order]]
        self.even = len(which) == len(prompts) * self.most and bool((order[1:] > order[:-1]).all())

    def gather(self, rows: Tensor) -> Tensor:
        """[G, n, ...]: rows [B, ...] by prompt and place, 0 where there is none."""
        shape = (len(self.prompts), self.most, *rows.shape[1:])
        if self.even:
            return rows.view(shape)
        return rows.new_zeros(shape).index_put_((self.group, self.slot), rows)

    def spread(self, placed: Tensor) -> Tensor:
        """[B, ...]: the rows again."""
        return placed.flatten(0, 1) if self.even else placed[self.group, self.slot]


class LeanDecoder:
    """Writes one token a row at a time, after prompts that were read once.

    Rows of one prompt attend to its keys and values where they stand, and to their own. Letters: G prompts of P tokens,
    B rows, t tokens of their own, K heads of keys and values, each for so many (Q) heads of queries, d their size.

    Args:
        model: that `supports` says yes to.
        read: the cache after the prompts were read, [G, K, P, d] a layer.
        mask: [G, P], 1 where a token of a prompt is real.
        which: [B] each row's prompt.
        room: most tokens that a row may be given.
    """

    def __init__(self, model: Any, read: GrowingCache, mask: Tensor, which: Tensor, room: int) -> None:
        trunk = model.base_model
        self._embed, self._layers, self._norm = trunk.embed_tokens, list(trunk.layers), trunk.norm
        self._rotary, self._head = trunk.rotary_emb, model.get_output_embeddings()
        self._read = [
            (held.keys[:, :, : held.length], held.values[:, :, : held.length]) for held in read.layers
        ]
        self._own = [GrowingLayer(room) for _ in self._layers]
        hidden = torch.where(mask.bool(), 0.0, -torch.inf)
        self._hidden = None if bool(mask.all()) else hidden.to(self._embed.weight.dtype)
        self._follow(which)

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether the model has the shape, as far as its modules tell."""
        trunk = model.base_model
        config = model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        full = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
        return (
            {name for name, _ in trunk.named_children()} == TRUNK
            and full
            and all(_is_layer(layer) for layer in trunk.layers)
        )

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows; prompts that none of them follows are let go."""
        self._follow(self._rows.group[rows])
        for held in self._own:
            if held.is_initialized:
                held.select(rows)

    def _follow(self, which: Tensor) -> None:
        """Each row's prompt; prompts that none follows are let go."""
        self._rows = Rows(which)
        left = self._rows.prompts
        if len(left) < len(self._read[0][0]):
            self._read = [(keys[left], values[left]) for keys, values in self._read]
            self._hidden = None if self._hidden is None else self._hidden[left]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row.

        Args:
            tokens: [B] int64.
            positions: [B, 1].
        """
        x = self._embed(tokens)
        turn = self._rotary(x, positions)
        for number, layer in enumerate(self._layers):
            x = x + self._attend(number, layer.self_attn, _normed(layer.input_layernorm, x), turn)
            mlp, normed = layer.mlp, _normed(layer.post_attention_layernorm, x)
            x = x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))
        logits: Tensor = self._head(_normed(self._norm, x))
        return logits

    def _attend(self, number: int, attention: Any, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """[B, H] for [B, H]."""
        count, size = len(x), attention.head_dim
        q = attention.q_proj(x).view(count, -1, size)
        k = attention.k_proj(x).view(count, -1, size)
        v = attention.v_proj(x).view(count, -1, 1, size)
        if hasattr(attention, "q_norm"):
            q, k = _normed(attention.q_norm, q), _normed(attention.k_norm, k)
        heads, queries = k.shape[1], q.shape[1]
        turned = _turned(torch.cat((q, k), dim=1), *turn)
        own_keys, own_values = self._own[number].update(turned[:, queries:].unsqueeze(2), v)
        q = (turned[:, :queries] * attention.scaling).view(count, heads, -1, size)
        read_keys, read_values = self._read[number]
        length = read_keys.shape[2]
        scores = torch.cat((self._to_read(q, read_keys), _per_head(q, own_keys.transpose(-1, -2))), dim=-1)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        out = self._of_read(weights[..., :length], read_values)
        out = out + _per_head(weights[..., length:], own_values)
        result: Tensor = attention.o_proj(out.reshape(count, -1))
        return result

    def _to_read(self, q: Tensor, keys: Tensor) -> Tensor:
        """[B, K, Q, P]: scores of the prompts' tokens."""
        placed = self._rows.gather(q)
        prompts, most, heads, each, _ = placed.shape
        scores = placed.transpose(1, 2).flatten(2, 3) @ keys.transpose(-1, -2)
        if self._hidden is not None:
            scores = scores + self._hidden[:, None, None, :]
        return self._rows.spread(scores.view(prompts, heads, most, each, -1).transpose(1, 2))

    def _of_read(self, weights: Tensor, values: Tensor) -> Tensor:
        """[B, K, Q, d]: the prompts' part of the output."""
        placed = self._rows.gather(weights.contiguous())
        prompts, most, heads, each, _ = placed.shape
        out = placed.transpose(1, 2).flatten(2, 3) @ values
        return self._rows.spread(out.view(prompts, heads, most, each, -1).transpose(1, 2))


def _per_head(left: Tensor, right: Tensor) -> Tensor:
    """[B, K, n, m]: a product for each row and head."""
    product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1))
    return product.view(*left.shape[:-1], right.shape[-1])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on [B, heads, d], with cos and sin [B, 1, d]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def _normed(norm: Any, x: Tensor) -> Tensor:
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
        and all(
            isinstance(part, nn.Linear) and type(part).__name__ in ("Linear", "FewRows") for part in linear
        )
        and all(hasattr(norm, "variance_epsilon") and hasattr(norm, "weight") for norm in norms)
        and hasattr(attention, "head_dim")
        and hasattr(attention, "scaling")
    )
