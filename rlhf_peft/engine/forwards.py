"""What the base computes: hidden states of roles; from them log-probabilities, values and rewards."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..kit.upload import upload
from ..maths.logprobs import LogitKernels
from .compat import attends_to_all, cache_keyword
from .fast.kernels import fused_kernels
from .fast.paths import FastPaths, logps_differ, tolerance
from .fast.shared_prefix import PrefixCache, Shared, share
from .head import HALF
from .loaded_model import LoadedModel
from .module_state import mode
from .roles import Roles

VALUE = "value"
CHUNK = 256
"""Tokens whose logits are held at once: with a vocabulary of 151,646, 156 MB in float32."""


class Forwards:
    """Forwards of one language model that carries adapters.

    Args:
        loaded: the base model.
        roles: whose adapters and heads they go through.
        fast: which fast paths are allowed.
        recomputes: activations are recomputed in the backward pass.

    Raises:
        ModelError: the model computes its logits in a way that is not known here.
    """

    def __init__(
        self, loaded: LoadedModel, roles: Roles, fast: FastPaths, *, recomputes: bool = False
    ) -> None:
        self._loaded, self._roles, self._fast = loaded, roles, fast
        self._recomputes = recomputes
        self._can_share: bool | None = None
        self._can_fuse: bool | None = None
        self._kernels = fused_kernels(loaded.device)
        self._lm, self._lm_head, self._heads = loaded.lm, loaded.lm_head, roles.heads
        self._check_head()

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
            if "position_ids" in inspect.signature(self._loaded.trunk.forward).parameters:
                inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        out: Tensor = self._loaded.trunk(**inputs).last_hidden_state
        return out

    def _hidden_shared(self, shared: Shared) -> Tensor:
        """[B, T, H]: the prompts' states, then the completions', each row's put together."""
        cache = PrefixCache(self._lm.config.get_text_config().num_hidden_layers)
        given: dict[str, Any] = {cache_keyword(self._loaded.trunk): cache, "use_cache": True}
        lengths = shared.prompt_mask.sum(-1)
        last = self._loaded.trunk(
            input_ids=shared.prompts,
            attention_mask=shared.prompt_mask,
            position_ids=(shared.prompt_mask.cumsum(-1) - 1).clamp(min=0),
            **given,
        ).last_hidden_state[:, -1]
        cache.hand_out(shared.which)
        columns = torch.arange(shared.completions.shape[1], device=last.device)
        ones = torch.ones_like(shared.completions)
        rest = self._loaded.trunk(
            input_ids=shared.completions,
            attention_mask=torch.cat([shared.prompt_mask[shared.which], ones], dim=1),
            position_ids=lengths[shared.which].unsqueeze(-1) + columns,
            **given,
        ).last_hidden_state
        states = torch.cat([last[shared.which].unsqueeze(1), rest], dim=1)
        whole = states.new_zeros(len(states), shared.width + 1, states.shape[-1])
        places = shared.places.unsqueeze(-1).expand_as(states)
        return whole.scatter(1, places, states)[:, :-1]

    def share_prompts(self, input_ids: Tensor, actions: Tensor) -> Shared | None:
        """Rows taken apart, so that `hidden` reads a prompt of several rows once; None where that is not possible.

        Args:
            input_ids: [B, T] int64, on the CPU, padded on the right; a row ends with its last action.
            actions: [B, T] bool, on the CPU, True where the policy wrote the token.
        """
        if len(input_ids) < 2 or not self.shares:
            return None
        mask = actions.to(torch.uint8)
        starts, lengths = mask.argmax(-1), mask.shape[1] - mask.flip(-1).argmax(-1)
        return None if bool((starts == 0).any()) else share(input_ids, starts, lengths, self._loaded.device)

    @property
    def shares(self) -> bool:
        """Whether prompts that rows share can be read once; tried the first time that it is asked."""
        if self._can_share is None:
            self._can_share = (
                not self._recomputes and attends_to_all(self._lm.config) and self._shared_is_same()
            )
        return self._can_share

    def _shared_is_same(self) -> bool:
        device = self._loaded.device
        ids = torch.arange(24).view(3, 8) % self._loaded.vocab_size
        ids[1, :5] = ids[0, :5]
        shared = share(ids, torch.tensor([5, 5, 3]), torch.tensor([8, 7, 8]), device, worth=2.0)
        assert shared is not None
        ids = ids.to(device)
        rows = (shared.places < shared.width).nonzero()
        at = (rows[:, 0], shared.places[rows[:, 0], rows[:, 1]])
        with mode(self._roles.model, False):
            return self._fast.verified_once(
                "shared_prefix", lambda: self.hidden(ids, shared=shared)[at], lambda: self.hidden(ids)[at]
            )

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
        with torch.no_grad(), mode(self._roles.model, False), self._roles.active.restored():
            for name in dict.fromkeys(self._roles.adapter_of(role) for role in roles):
                self._roles.active.to(name)
                each[name] = self.hidden(input_ids, shared=shared)
        return {role: each[self._roles.adapter_of(role)] for role in roles}

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
            input_ids: [B, T], best on the CPU.
            mask: [B, T] bool, best on the CPU, else the host waits until it is computed; position 0 is never scored,
                for nothing is before it.
            temperature: of the distribution that the tokens were drawn from.
            entropy: also the entropy of each distribution.
            chunk: tokens whose logits are held at once.

        Returns:
            [B, T] float32, 0 where the mask is False; entropies in nats likewise, or None.
        """
        rows, columns = mask[:, 1:].cpu().nonzero(as_tuple=True)
        targets = upload(input_ids[rows, columns + 1], hidden.device)
        rows, columns = upload(rows, hidden.device), upload(columns, hidden.device)
        kernels = self._kernels if self.fuses_logps else None
        logps, entropies = self._lm_head.logps(
            hidden[rows, columns], targets, temperature, entropy, chunk, kernels
        )
        zeros, places = torch.zeros(mask.shape, dtype=logps.dtype, device=logps.device), (rows, columns + 1)
        out = zeros.index_put(places, logps)
        return out, None if entropies is None else zeros.index_put(places, entropies)

    @property
    def fuses_logps(self) -> bool:
        """Whether kernels give log-probabilities, entropies and their gradients; tried the first time it is asked."""
        if self._can_fuse is None:
            self._can_fuse = self._kernels is not None and self._fused_is_same(self._kernels)
        return self._can_fuse

    def _fused_is_same(self, kernels: LogitKernels) -> bool:
        ids = self._loaded.sample_ids()
        with torch.no_grad(), mode(self._roles.model, False):
            states = self.hidden(ids).flatten(0, 1)
        targets, chunk = ids.flatten().roll(1), len(states) - 1

        def found(states: Tensor, kernels: LogitKernels | None) -> Tensor:
            return torch.cat(
                [x for x in self._lm_head.logps(states, targets, 0.7, True, chunk, kernels) if x is not None]
            )

        def gradient(kernels: LogitKernels | None) -> Tensor:
            with torch.enable_grad():
                leaf = states.clone().requires_grad_()
                return torch.autograd.grad(found(leaf, kernels).square().sum(), leaf)[0]

        def fused(does: Callable[[], Tensor]) -> Callable[[], Tensor]:
            """The same; what Triton raises where it cannot compile is an error of its own."""

            def attempt() -> Tensor:
                try:
                    return does()
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    raise RuntimeError(str(error)) from error

            return attempt

        return self._fast.verified_once(
            "fused_logprobs", fused(lambda: found(states, kernels)), lambda: found(states, None), of="values"
        ) and self._fast.verified_once(
            "fused_logprobs", fused(lambda: gradient(kernels)), lambda: gradient(None), of="gradients"
        )

    def values(self, hidden: Tensor, role: str = VALUE) -> Tensor:
        """[B, T]: the value of the state before each token, from hidden states [B, T, H]; 0 at position 0."""
        return nn.functional.pad(self._heads[role](hidden[:, :-1]), (1, 0))

    def rewards(self, hidden: Tensor, lengths: Tensor, role: str) -> Tensor:
        """[B]: the head's output at the last real token.

        Args:
            hidden: [B, T, H] of the role.
            lengths: [B], columns up to and with the last real token: the row's length where padding is on the
                right, T where it is on the left.
            role: whose head.
        """
        rows = torch.arange(len(hidden), device=hidden.device)
        out: Tensor = self._heads[role](hidden[rows, upload(lengths, hidden.device) - 1])
        return out

    def _check_head(self) -> None:
        """Chunked log-probabilities must come from the very logits that the model computes."""
        ids = self._loaded.sample_ids()
        with torch.no_grad(), mode(self._roles.model, False):
            theirs = self._lm(input_ids=ids, use_cache=False).logits.float()
            hidden = self.hidden(ids)
            ours = (
                self._lm_head.logits(hidden).float()
                if hidden.shape[-1] == self._loaded.width
                else theirs[..., :0]
            )
        dtype, largest = self._loaded.dtype, float(theirs.abs().max())
        if dtype == torch.float16 and not math.isfinite(largest):
            raise ModelError(
                f"model.compute_dtype: {type(self._lm).__name__} overflows in float16, whose largest number is 65,504. "
                "Use model.compute_dtype=float32, or bfloat16 where the device has it."
            )
        same = theirs.shape == ours.shape and torch.allclose(theirs, ours, atol=tolerance(dtype) * largest)
        # 2 % of a logit of 30, which passes in half precision, are 0.6 nats.
        if not same or (dtype in HALF and logps_differ(ours, theirs) is not None):
            raise ModelError(
                f"model.path: {type(self._lm).__name__} computes its logits in a way that is not known here "
                "(more than a matrix, bias, scale and soft cap), so its log-probabilities would be wrong."
            )
