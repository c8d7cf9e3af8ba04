"""The one base model, and all that stands on it.

`SharedBase` owns the quantized base, its tokenizer, every adapter and every head. A role is a name (`policy`,
`reference`, `reward-0`, ..., `value`) that stands for an adapter, or for none; roles are entered as contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from ..errors import ModelError
from . import adapters
from .adapters import LoraSpec
from .head import LmHead, ScalarHead
from .lend import RoleView, borrowed
from .merged import fits, merged
from .quantize import Source, load_model
from .roles import Switch, mode, no_dropout, requires_grad
from .tokenizer import eos_ids, load_tokenizer

POLICY = "policy"
REFERENCE = "reference"
VALUE = "value"


class SharedBase:
    """One frozen base model, shared by all roles.

    Args:
        source: where the base comes from and how it is held.
        lora: shape of the policy's adapter, and of others that give none.
        seed: of the initialisation of adapters and heads.
        max_length: longest row in tokens; None: what the model allows.
        gradient_checkpointing: recompute activations in the backward pass.

    Raises:
        ModelError: the model, its tokenizer or its quantization cannot be used here.
    """

    def __init__(
        self,
        source: Source,
        lora: LoraSpec | None = None,
        *,
        seed: int = 0,
        max_length: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.source = source
        self.lora = lora or LoraSpec()
        self.lm, self.device, self.dtype = load_model(source)
        self.tokenizer = load_tokenizer(source, self.lm.config)
        self.eos_ids = eos_ids(self.tokenizer, self.lm.generation_config)
        self.max_length = self._allowed_length(max_length)
        self._generator = torch.Generator().manual_seed(seed)
        self.heads = nn.ModuleDict()
        self._adapter_of: dict[str, str | None] = {POLICY: POLICY}
        self.model = self._first_adapter()
        self._switch = Switch(self.model)
        self.lm_head = LmHead.of(self.lm)
        self._check_head()
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            self._enable_checkpointing()

    # --- making roles ---------------------------------------------------------------------------------------------

    def _first_adapter(self) -> Any:
        try:
            with self._seeded():
                model = get_peft_model(self.lm, self.lora.config(self.source.path), adapter_name=POLICY)
        except ValueError as error:
            raise ModelError(f"lora.target_modules: {error}") from error
        model.requires_grad_(False)
        model.eval()
        return model

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        seed = int(torch.randint(2**31, (1,), generator=self._generator))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    @property
    def roles(self) -> list[str]:
        """Names of all roles there are."""
        return list(self._adapter_of)

    def adapter_of(self, role: str) -> str | None:
        """The adapter that a role goes through; None is the raw base.

        Raises:
            ModelError: there is no such role.
        """
        if role not in self._adapter_of:
            raise ModelError(f"there is no role {role!r} on this base; there are {', '.join(self.roles)}.")
        return self._adapter_of[role]

    def add_role(
        self,
        role: str,
        *,
        like: str | None = None,
        lora: LoraSpec | None = None,
        trunk: str | None = None,
        head: bool = False,
    ) -> None:
        """Make a role.

        Args:
            role: its name; a role of that name is replaced.
            like: role whose adapter (and head, if both have one) it begins as a copy of; None: zero.
            lora: shape of its adapter; None: that of `like`, or the base's.
            trunk: role whose adapter it shares instead of having its own.
            head: give it a scalar head.
        """
        self.remove_role(role)
        source = None if like is None else self.adapter_of(like)
        if trunk is not None:
            self._adapter_of[role] = self.adapter_of(trunk)
        else:
            self._add_adapter(role, None if source is None else self.model.peft_config[source], lora)
            if source is not None:
                adapters.copy(self.model, source, role)
            self._adapter_of[role] = role
        if head:
            fresh = ScalarHead(self.lm.config.get_text_config().hidden_size, self._generator).to(self.device)
            if like in self.heads:
                fresh.load_state_dict(self.heads[like].state_dict())
            self.heads[role] = fresh.requires_grad_(False)

    def _add_adapter(self, name: str, shape: Any, lora: LoraSpec | None) -> None:
        config = (lora or self.lora).config(self.source.path)
        if shape is not None:
            config = type(shape)(**{**shape.to_dict(), "inference_mode": False})
        elif config.target_modules == "all-linear":
            config.target_modules = self.model.peft_config[POLICY].target_modules
        with self._switch.restored(), self._seeded():
            flags = [(p, p.requires_grad) for p in self.model.parameters()]
            self.model.add_adapter(name, config)
            self.model.requires_grad_(False)
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        self.model.eval()

    def remove_role(self, role: str) -> None:
        """Forget a role and free its adapter and head; nothing happens where there is none."""
        adapter = self._adapter_of.pop(role, None)
        if adapter is not None and adapter not in self._adapter_of.values():
            with self._switch.restored():
                self.model.delete_adapter(adapter)
        if role in self.heads:
            del self.heads[role]

    def load_role(self, role: str, reference: str, *, head: bool = False) -> Path:
        """Make a role from something saved: a run, a folder or a hub id; returns the folder it was read from.

        Raises:
            ModelError: nothing is there, it does not fit this base, or a head is wanted and there is none.
        """
        stored = adapters.read(adapters.resolve(reference, role.rsplit("-", 1)[0]))
        if head and stored.head is None:
            raise ModelError(f"init: {stored.folder} has no scalar head, so it cannot be a {role}.")
        if role == POLICY and len(self._adapter_of) > 1:
            raise ModelError("init.policy: give it in the first stage that trains the policy.")
        with self._switch.restored():
            if role in self._adapter_of:
                self._replace_adapter(role, stored.config)
            else:
                self._add_adapter(role, stored.config, None)
        self._adapter_of[role] = role
        adapters.load_state(self.model, role, stored.weights, str(stored.folder))
        if head and stored.head is not None:
            fresh = ScalarHead(self.lm.config.get_text_config().hidden_size).to(self.device)
            adapters.load_head(fresh, stored.head, str(stored.folder))
            self.heads[role] = fresh.requires_grad_(False)
        return stored.folder

    def _replace_adapter(self, role: str, config: Any) -> None:
        """Swap an adapter for one of another shape under the same name (PEFT cannot delete its only one)."""
        self._add_adapter("incoming", config, None)
        self.model.delete_adapter(role)
        self._add_adapter(role, config, None)
        self.model.delete_adapter("incoming")

    def save_role(self, role: str, folder: Path) -> None:
        """Write a role's adapter and head in PEFT's format.

        Raises:
            ModelError: the role has no adapter of its own.
        """
        adapter = self.adapter_of(role)
        if adapter is None:
            raise ModelError(f"{role} is the raw base; there is nothing to save.")
        head = self.heads[role] if role in self.heads else None
        adapters.save(self.model, adapter, folder, self.source.path, head)

    def is_zero(self, role: str) -> bool:
        """Whether the role's adapter changes nothing: it is None, or every B is zero."""
        adapter = self.adapter_of(role)
        if adapter is None:
            return True
        weights = adapters.state(self.model, adapter)
        return all(not bool(value.any()) for key, value in weights.items() if "lora_B" in key)

    def fix_reference(self) -> None:
        """Make the reference what the policy is now: the raw base if it is that, else a frozen copy."""
        self.remove_role(REFERENCE)
        if self.is_zero(POLICY):
            self._adapter_of[REFERENCE] = None
        else:
            self.add_role(REFERENCE, like=POLICY)

    # --- entering roles -------------------------------------------------------------------------------------------

    @contextmanager
    def role(self, role: str, *, train: bool | None = None) -> Iterator[None]:
        """Forwards go through this role's adapter; with `train`, in that mode. All is as before on exit."""
        adapter = self.adapter_of(role)
        with self._switch.restored(), nullcontext() if train is None else mode(self.model, train):
            self._switch.to(adapter)
            yield

    @contextmanager
    def training(self, roles: Sequence[str]) -> Iterator[list[nn.Parameter]]:
        """Only these roles' adapters and heads have gradients, dropout is off; gives their parameters."""
        chosen = [p for role in roles for p in self.parameters(role)]
        with requires_grad(self.model, {id(p) for p in chosen}), requires_grad(self.heads, {id(p) for p in chosen}):
            yield chosen

    def parameters(self, role: str) -> list[nn.Parameter]:
        """A role's own parameters: its adapter, unless it shares another role's, and its head."""
        adapter = self.adapter_of(role)
        own = adapter == role
        found = [p for n, p in self.model.named_parameters() if own and f".{adapter}." in n and "lora_" in n]
        return found + (list(self.heads[role].parameters()) if role in self.heads else [])

    def without_dropout(self) -> Any:
        """A context in which no layer drops anything."""
        return no_dropout(self.model)

    @contextmanager
    def lend(self, role: str) -> Iterator[Any]:
        """The PEFT model with this role active and its adapter alone trainable; everything is restored after."""
        with borrowed(self.model), self._switch.restored():
            self._switch.to(self.adapter_of(role))
            chosen = {id(p) for p in self.parameters(role)}
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in chosen)
            yield self.model

    def view(self, role: str) -> RoleView:
        """A role as a module without parameters, for trainers that want a reference model."""

        @contextmanager
        def enter() -> Iterator[None]:
            with self.role(role, train=False):
                yield

        return RoleView(enter, self.lm)

    @contextmanager
    def decoder(self, role: str, merge: bool | None = None) -> Iterator[Any]:
        """The causal LM in eval mode as this role, for decoding.

        Args:
            role: whose adapter.
            merge: dense merged weights; None: if they fit in memory.
        """
        if merge is None:
            merge = fits(self.lm, self.dtype, self.device)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.role(role, train=False))
            if merge:
                stack.enter_context(merged(self.lm, self.adapter_of(role), self.dtype))
            yield self.lm

    # --- forwards -------------------------------------------------------------------------------------------------

    @property
    def trunk(self) -> nn.Module:
        """The model without its language-model head."""
        trunk: nn.Module = getattr(self.lm, self.lm.base_model_prefix)
        return trunk

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states of the active role.

        Args:
            input_ids: [B, T] int64. Without a mask, padding must be on the right: a causal model's real tokens then
                never see it.
            attention_mask: [B, T], 1 where real; needed for padding on the left.

        Returns:
            [B, T, H]; garbage where padded.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        out: Tensor = self.trunk(**inputs).last_hidden_state
        return out

    def hidden_of(self, roles: Sequence[str], input_ids: Tensor) -> dict[str, Tensor]:
        """Last hidden states of several roles, without gradients, from one forward of mixed rows.

        Args:
            roles: names; roles that share an adapter share the result.
            input_ids: [B, T], padded on the right.

        Returns:
            Role to [B, T, H].
        """
        names = list(dict.fromkeys(self.adapter_of(role) for role in roles))
        with torch.no_grad(), mode(self.model, False):
            if len(names) == 1 or not self._can_mix:
                each = {}
                for name in names:
                    with self._switch.restored():
                        self._switch.to(name)
                        each[name] = self.hidden(input_ids)
            else:
                rows = [name or "__base__" for name in names for _ in range(len(input_ids))]
                with self._mixed(rows):
                    out = self.hidden(input_ids.repeat(len(names), 1))
                each = dict(zip(names, out.chunk(len(names)), strict=True))
        return {role: each[self.adapter_of(role)] for role in roles}

    @property
    def _can_mix(self) -> bool:
        """Mixture-of-experts layers reorder rows, which adapter names by row cannot follow."""
        config = self.lm.config.get_text_config()
        return not any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts"))

    @contextmanager
    def _mixed(self, rows: list[str]) -> Iterator[None]:
        """PEFT's mixed-adapter batches for forwards of the trunk (PEFT itself offers them at the top only)."""

        def inject(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "adapter_names": rows}

        handles = [m.register_forward_pre_hook(inject, with_kwargs=True) for m in self._switch.layers]
        try:
            with self._switch.restored():
                self._switch.to(POLICY)
                yield
        finally:
            for handle in handles:
                handle.remove()

    def logps(
        self,
        hidden: Tensor,
        input_ids: Tensor,
        mask: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        chunk: int = 1024,
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
        """[B]: the head's output at the last real token, found by length."""
        rows = torch.arange(len(hidden), device=hidden.device)
        out: Tensor = self.heads[role](hidden[rows, lengths.to(hidden.device) - 1])
        return out

    # --- checks at load -------------------------------------------------------------------------------------------

    def _allowed_length(self, asked: int | None) -> int:
        config = self.lm.config.get_text_config()
        allowed = int(getattr(config, "max_position_embeddings", None) or 2**20)
        if asked is not None and asked > allowed:
            raise ModelError(f"model.max_length: {asked} is more than the {allowed} positions of {self.source.path}.")
        return asked or allowed

    def _check_head(self) -> None:
        """Chunked log-probabilities must come from the very logits that the model computes."""
        ids = torch.tensor([[min(3, self.lm.config.get_text_config().vocab_size - 1), 1, 2]], device=self.device)
        with torch.no_grad(), mode(self.lm, False):
            theirs = self.lm(input_ids=ids, use_cache=False).logits.float()
            ours = self.lm_head.logits(self.hidden(ids)).float()
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=2e-2 * float(theirs.abs().max())):
            raise ModelError(
                f"{type(self.lm).__name__} computes its logits in a way that is not known here (more than a matrix, "
                "bias, scale and soft cap), so its log-probabilities would be wrong."
            )

    def _enable_checkpointing(self) -> None:
        """Non-reentrant, and recomputing under the role that the forward had."""

        def contexts() -> Any:
            active = self._switch.active

            @contextmanager
            def again() -> Iterator[None]:
                with self._switch.restored():
                    self._switch.set(active)
                    yield

            return nullcontext(), again()

        self.lm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
