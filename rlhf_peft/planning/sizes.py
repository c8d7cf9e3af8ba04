"""Formulas for sizes in bytes: weights, adapters, optimizer, cache, activations, logits.

Letters: B rows, P tokens of a prompt, C of a completion, n tokens of one forward, V vocabulary, H hidden, I inner, d
bytes of a value in the compute dtype. Adapters, heads and their gradients are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.forwards import CHUNK
from .shape import Linear, Shape

TILE = (4096, 32_768)
SMALL_TENSOR = 4096
"""The optimizer state of tensors with fewer values than this is not quantized."""


def weight_bytes(shape: Shape) -> int:
    """Weights of the base: quantized layers as their quantizer stores them, the rest in the compute dtype."""
    return shape.plain * shape.itemsize + sum(layer.quantized_bytes for layer in shape.linear)


def lora_values(layers: Sequence[Linear], r: int) -> int:
    """Number of values of an adapter: r (in + out) for each layer."""
    return sum(r * (layer.inputs + layer.outputs) for layer in layers)


def optimizer_bytes(layers: Sequence[Linear], r: int, head: int, optimizer: str) -> int:
    """Optimizer state: two moments of each trained value, 8 bytes; with an 8-bit optimizer 2 bytes and the scales."""
    sizes = [r * size for layer in layers for size in (layer.inputs, layer.outputs)] + (
        [head] if head else []
    )
    if optimizer == "adamw":
        return 8 * sum(sizes)
    return sum(2 * n + 8 * -(-n // 256) if n >= SMALL_TENSOR else 8 * n for n in sizes)


def reserved_beyond(blocks: int) -> int:
    """What torch's allocator holds on a GPU beyond so many bytes of blocks: pages that are not full, free pieces.

    A page of each of its two ranges, and a share that is fitted to dry runs of eight recipes at full depth, where it
    was 60 to 490 MiB in all.
    """
    return 22 * 2**20 + blocks * 6 // 100


def dense_bytes(shape: Shape) -> int:
    """Dense weights that replace the quantized ones while completions are sampled."""
    return sum(layer.numel for layer in shape.linear) * shape.itemsize


def largest_layer(shape: Shape) -> int:
    """The largest layer, dequantized."""
    return max((layer.numel for layer in shape.linear), default=0) * shape.itemsize


def cache_bytes(shape: Shape, tokens: int) -> int:
    """Keys and values of n tokens: 2 n layers x heads x size x d."""
    return 2 * tokens * shape.layers * shape.kv_heads * shape.head_size * shape.itemsize


def draw_bytes(shape: Shape, rows: int) -> int:
    """Logits of one step, and the four float32 tensors of that size that a draw makes of them."""
    return rows * shape.vocabulary * (shape.itemsize + 4 * 4)


def logit_chunk_bytes(shape: Shape, tokens: int, *, entropy: bool) -> int:
    """Buffers of chunked log-probabilities: one of float32, one more for entropies.

    A CPU needs one in the shorter dtype too; CUDA multiplies into float32.
    """
    each = 4 * (2 if entropy else 1) + (
        shape.itemsize if shape.itemsize < 4 and shape.device != "cuda" else 0
    )
    return min(CHUNK, tokens) * shape.vocabulary * each


def tile_bytes(shape: Shape, tokens: int) -> int:
    """Logits of a TRL trainer, which computes them in tiles of 4,096 tokens by 32,768 words, most in the backward pass.

    On a GPU a kernel works inside the tile, which has its full width whatever the vocabulary; elsewhere there are up to
    seven float32 tensors and a mask of its size beside it (`trl.kernels.chunked_logprob`, TRL 1.16).
    """
    if shape.device == "cuda":
        return min(TILE[0], tokens) * TILE[1] * shape.itemsize
    return min(TILE[0], tokens) * min(TILE[1], shape.vocabulary) * (shape.itemsize + 7 * 4 + 1)


def layer_saved(
    shape: Shape,
    tokens: int,
    keys: int,
    *,
    fused: bool = False,
    plain_lora: bool = False,
    fused_norm: bool = False,
) -> int:
    """Activations that one layer keeps for the backward pass.

    Twice the residual (float32, or as it is where the norm is one kernel) and its norm; queries, output, and keys and
    values of `keys` tokens, repeated where
    heads share them, but not by the fused attention of a card, which takes no mask; gate, its activation, up, product,
    or only gate and up where the MLP is one step. PEFT's own forward in 16 bits keeps a float32 copy of the input of
    each of the seven linear layers too.

    Args:
        shape: the model's.
        tokens: that go through it.
        keys: tokens that they attend to, over all rows; more than `tokens` where prompts are shared, by a mask.
        fused: the MLP is one step.
        plain_lora: linear layers with an adapter are computed by PEFT.
        fused_norm: a norm is one kernel.
    """
    d, query_width, key_width = (
        shape.itemsize,
        shape.heads * shape.head_size,
        shape.kv_heads * shape.head_size,
    )
    flash = shape.device == "cuda" and d == 2 and keys <= tokens
    repeated_width = key_width if flash else max(query_width, key_width)
    before = d if fused_norm else 4
    saved = 2 * shape.hidden * (before + d) + 2 * query_width * d + 4 * shape.heads
    saved += shape.inner * d * (2 if fused else 4 if shape.gated else 3)
    if shape.qk_norm:
        saved += before * (query_width + key_width)
    if plain_lora and d < 4:
        saved += 4 * ((5 if shape.gated else 4) * shape.hidden + query_width + shape.inner)
    return tokens * saved + 2 * keys * repeated_width * d


def layer_transient(shape: Shape, tokens: int) -> int:
    """Memory of one layer while it is computed: three tensors of the MLP's width, two states, a dense weight."""
    return tokens * shape.itemsize * (3 * shape.inner + 2 * shape.hidden) + largest_layer(shape)


def saved_bytes(
    shape: Shape,
    tokens: int,
    keys: int,
    *,
    checkpointing: bool,
    trunks: int = 1,
    fused: bool = False,
    plain_lora: bool = False,
    fused_norm: bool = False,
) -> int:
    """Activations kept for the backward pass of whole trunks; checkpointed: one layer's, and the inputs of all."""
    one = layer_saved(shape, tokens, keys, fused=fused, plain_lora=plain_lora, fused_norm=fused_norm)
    if checkpointing:
        return one + trunks * shape.layers * tokens * shape.hidden * shape.itemsize
    return trunks * shape.layers * one


def state_bytes(shape: Shape, tokens: int, copies: int) -> int:
    """Copies of the last hidden states."""
    return copies * tokens * shape.hidden * shape.itemsize
