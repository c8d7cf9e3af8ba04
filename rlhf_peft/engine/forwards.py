"""What the base computes: hidden states of roles; from them log-probabilities, values and rewards."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .compat import cache_keyword
from .head import LmHead
from .modes import mode
from .prefix import PrefixCache, Shared, share
from .roles import Switch

VALUE = "value"
CHUNK = 256
"""Tokens whose logits are held at once: with a vocabulary of 151,646, 156 MB in float32."""


class Forwards(ABC):
    """Forwards of one language model that carries adapters.

    Attributes:
        lm: the causal language model.
        heads: scalar heads by role.
        lm_head: the language model's own head.
    """

    lm: Any
    device: torch.device
    dtype: torch.dtype
    heads: nn.ModuleDict
    lm_head: LmHead
    _switch: Switch
    gradient_checkpointing: bool
    _shares: bool | None = None

    @abstractmethod
    def adapter_of(self, role: str) -> str | None:
        """The adapter that a role goes through; None is the raw base."""

    @property
    def trunk(self) -> nn.Module:
        """The model without its language-model head."""
        trunk: nn.Module = self.lm.base_model
        return trunk

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.lm_head.weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: token ids from this number on have none."""
        return int(self.lm.get_input_embeddings().weight.shape[0])

    # --- hidden states --------------------------------------------------------------------------------------

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, shared: Shared | None = None
    ) -> Tensor:
        """Last hidden states of the active role.

        Args:
            input_ids: [B, T] int64. Without a mask, padding must be on the right: a causal model's real
                tokens then never see it.
            attention_mask: [B, T], 1 where real; needed for padding on the left.
            shared: the same rows taken apart by `share`; prompts are then read once.

        Returns:
            [B, T, H]; garbage where padded; with `shared`, 0 at a prompt's tokens before its last.
        """
        if shared is not None:
            return self._hidden_shared(shared)
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
            if "position_ids" in inspect.signature(self.trunk.forward).parameters:
                inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        out: Tensor = self.trunk(**inputs).last_hidden_state
        return out

    def _hidden_shared(self, shared: Shared) -> Tensor:
        """[B, T, H]: the prompts' states, then the completions', each row's put together."""
        cache = PrefixCache(self.lm.config.get_text_config().num_hidden_layers)
        given: dict[str, Any] = {cache_keyword(self.trunk): cache, "use_cache": True}
        lengths = shared.prompt_mask.sum(-1)
        last = self.trunk(
            input_ids=shared.prompts,
            attention_mask=shared.prompt_mask,
            position_ids=(shared.prompt_mask.cumsum(-1) - 1).clamp(min=0),
            **given,
        ).last_hidden_state[:, -1]
        cache.hand_out(shared.which)
        columns = torch.arange(shared.completions.shape[1], device=last.device)
        ones = torch.ones_like(shared.completions)
        rest = self.trunk(
            input_ids=shared.completions,
            attention_mask=torch.cat([shared.prompt_mask[shared.which], ones], dim=1),
            position_ids=lengths[shared.which].unsqueeze(-1) + columns,
            **given,
        ).last_hidden_state
        states = torch.cat([last[shared.which].unsqueeze(1), rest], dim=1)
        whole = states.new_zeros(len(states), shared.width + 1, states.shape[-1])
        places = shared.places.unsqueeze(-1).expand_as(states)
        return whole.scatter(1, places, states)[:, :-1]

    @property
    def shares(self) -> bool:
        """Whether prompts that rows share can be read once; tried the first time that it is asked."""
        if self._shares is None:
            self._shares = (
                not self.gradient_checkpointing and self._attends_to_all() and self._shared_is_same()
            )
        return self._shares

    def _attends_to_all(self) -> bool:
        config = self.lm.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is not None:
            return set(kinds) == {"full_attention"}
        return getattr(config, "sliding_window", None) is None

    def _shared_is_same(self) -> bool:
        ids = torch.arange(24, device=self.device).view(3, 8) % self.vocab_size
        ids[1, :5] = ids[0, :5]
        starts, lengths = torch.tensor([5, 5, 3]), torch.tensor([8, 7, 8])
        shared = share(ids, starts, lengths, worth=2.0)
        assert shared is not None
        try:
            with torch.no_grad(), mode(self.lm, False):
                plain, ours = self.hidden(ids), self.hidden(ids, shared=shared)
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
            return False  # a model with another idea of a cache
        near = 1e-4 if self.dtype == torch.float32 else 2e-2
        read = (shared.places < shared.width).nonzero()
        at = (read[:, 0], shared.places[read[:, 0], read[:, 1]])
        return torch.allclose(plain[at], ours[at], atol=near * float(plain.abs().max()))

    def hidden_of(
        self, roles: Sequence[str], input_ids: Tensor, *, shared: Shared | None = None
    ) -> dict[str, Tensor]:
        """Last hidden states of several roles, without gradients; roles that share an adapter share the result.

        One forward for each adapter: with rows of several adapters in one forward the scoring of a PPO step took
        longer (9.4 against 7.4 seconds, 34M parameters on two cores).

        Args:
            roles: names.
            input_ids: [B, T], padded on the right.
            shared: the same rows taken apart by `share`; prompts are then read once.

        Returns:
            Role to [B, T, H].
        """
        each: dict[str | None, Tensor] = {}
        with torch.no_grad(), mode(self.lm, False), self._switch.restored():
            for name in dict.fromkeys(self.adapter_of(role) for role in roles):
                self._switch.to(name)
                each[name] = self.hidden(input_ids, shared=shared)
        return {role: each[self.adapter_of(role)] for role in roles}

    def _sample(self) -> Tensor:
        """[3, 4] token ids, to try a forward with."""
        ids = torch.arange(12, device=self.device) % self.vocab_size
        return ids.view(3, 4)

    # --- from hidden states ---------------------------------------------------------------------------------

    def logps(
        self,
        hidden: Tensor,
        input_ids: Tensor,
        mask: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        chunk: int = CHUNK,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the masked tokens given those before them; no [B, T, V] tensor is held.

        Args:
            hidden: [B, T, H] of the role.
            input_ids: [B, T].
            mask: [B, T] bool; position 0 is never scored, for nothing is before it.
            temperature: of the distribution that the tokens were drawn from.
            entropy: also the entropy of each distribution.
            chunk: tokens whose logits are held at once.

        Returns:
            [B, T] float32, 0 where the mask is False; entropies in nats likewise, or None.
        """
        scored = mask.clone()
        scored[:, 0] = False
        before = hidden[:, :-1][scored[:, 1:]]
        logps, entropies = self.lm_head.logps(before, input_ids[scored], temperature, entropy, chunk)
        zeros = torch.zeros(mask.shape, dtype=logps.dtype, device=logps.device)
        out = zeros.masked_scatter(scored, logps)
        return out, None if entropies is None else zeros.masked_scatter(scored, entropies)

    def values(self, hidden: Tensor, role: str = VALUE) -> Tensor:
        """[B, T]: the value of the state before each token, from hidden states [B, T, H]; 0 at position 0."""
        return nn.functional.pad(self.heads[role](hidden[:, :-1]), (1, 0))

    def rewards(self, hidden: Tensor, lengths: Tensor, role: str) -> Tensor:
        """[B]: the head's output at the last real token.

        Args:
            hidden: [B, T, H] of the role.
            lengths: [B], columns up to and with the last real token: the row's length where padding is on the
                right, T where it is on the left.
            role: whose head.
        """
        rows = torch.arange(len(hidden), device=hidden.device)
        out: Tensor = self.heads[role](hidden[rows, lengths.to(hidden.device) - 1])
        return out

    def _check_head(self) -> None:
        """Chunked log-probabilities must come from the very logits that the model computes."""
        ids = self._sample()
        with torch.no_grad(), mode(self.lm, False):
            theirs = self.lm(input_ids=ids, use_cache=False).logits.float()
            hidden = self.hidden(ids)
            ours = self.lm_head.logits(hidden).float() if hidden.shape[-1] == self.width else theirs[..., :0]
        near = 1e-4 if self.dtype == torch.float32 else 2e-2
        if theirs.shape != ours.shape or not torch.allclose(
            theirs, ours, atol=near * float(theirs.abs().max())
        ):
            raise ModelError(
                f"model.path: {type(self.lm).__name__} computes its logits in a way that is not known here "
                "(more than a matrix, bias, scale and soft cap), so its log-probabilities would be wrong."
            )
