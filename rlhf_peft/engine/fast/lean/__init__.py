"""One decoding step of Llama-shaped models: the same modules' weights, by the fewest operations.

Decoding reads every key and value for every token, and rows of one prompt would read that prompt's once each; here
they read them together (Hydragen, Juravsky et al. 2024, arXiv:2402.05099), and they are held once. The first step is
computed both ways, and transformers' own stays in use where they differ.

On a CPU vectors are columns and weights dense (`columns`). On a card vectors are rows; weights may be quantized, and
the adapter's products are computed beside them (`row_vectors`), so that nothing is merged and the adapter is exact.

Left out on purpose: every model that is not embeddings, layers of [norm, attention with rotary positions, norm, gated
MLP], norm, head; sliding windows.
"""

from .architecture import needs_no_host
from .decoder import FEW, LeanDecoder
from .groups import Rows

__all__ = ["FEW", "LeanDecoder", "Rows", "needs_no_host"]
