"""The one base model, and all that stands on it.

`SharedBase` owns the quantized base, its tokenizer, every adapter and every head. A role is a name (`policy`,
`reference`, `reward-0`, ..., `value`) that stands for an adapter, or for none; roles are entered as contexts.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from . import adapters
from .adapters import LoraSpec
from .ends import end_ids
from .head import LmHead, ScalarHead
from .lend import RoleView, borrowed
from .merged import fits, merged
from .modes import mode, no_dropout, requires_grad
from .quantize import load_model
from .roles import Switch, checkpoint_roles
from .roster import POLICY, Roster
from .source import Source
from .targets import targets_of
from .tokenizer import load_tokenizer

log = logging.getLogger("rlhf_peft")


class SharedBase(Roster):
    """One frozen base model, shared by all roles.

    Args:
        source: where the base comes from and how it is held.
        lora: shape of the policy's adapter, and of others that give none.
        seed: of the initialisation of adapters and heads.
        max_length: longest row in tokens; None: what the model allows.
        gradient_checkpointing: recompute activations in the backward pass.
        merge_rollouts: decode with dense merged weights; None: if they fit in memory.
        accepted: in what this base may differ from that of adapters which are loaded: names of `fingerprint`.

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
        merge_rollouts: bool | None = None,
        accepted: Collection[str] = (),
    ) -> None:
        self.accepted = accepted
        self.source = source
        self.lora = lora or LoraSpec()
        self.lm, self.device, self.dtype = load_model(source)
        self.tokenizer = load_tokenizer(source, self.vocab_size)
        self.eos_ids = end_ids(self.tokenizer, self.lm.generation_config)
        self.max_length = self._allowed_length(max_length)
        self.lm_head = LmHead.of(self.lm)
        self.heads = nn.ModuleDict()
        self._adapter_of: dict[str, str | None] = {POLICY: POLICY}
        self._seed = seed
        self.targets = targets_of(self.lm, self._sample())
        self._conv1d = any(isinstance(module, Conv1D) for module in self.lm.modules())
        self.model = self._first_adapter()
        self._switch = Switch(self.model)
        self._check_head()
        self.merge_rollouts = merge_rollouts
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            self._enable_checkpointing()

    @property
    def context_length(self) -> int:
        """Tokens that the model itself takes; a million where it names no limit."""
        config = self.lm.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**20)

    def _allowed_length(self, asked: int | None) -> int:
        allowed = self.context_length
        if asked is not None and asked > allowed:
            raise ModelError(
                f"model.max_length: {asked} is more than the {allowed} positions of {self.source.path}. Use "
                f"at most {allowed}."
            )
        return asked or allowed

    def _first_adapter(self) -> Any:
        config = self._fitted(self.lora)
        if told := self.targets.left_out(self.lora.config(self.source.path)):
            log.warning("%s", told)
        try:
            with self._seeded(POLICY):
                config.base_model_name_or_path = None  # PEFT puts the folder here, with a warning
                model = get_peft_model(self.lm, config, adapter_name=POLICY)
                config.base_model_name_or_path = self.source.path
        except ValueError as error:
            raise ModelError(f"lora.target_modules: {error}") from error
        adapters.check_places(model, POLICY)
        model.requires_grad_(False)
        model.eval()
        return model

    def _enable_checkpointing(self) -> None:
        try:
            checkpoint_roles(self.lm, self._switch)
        except ValueError as error:
            raise ModelError(
                f"model.gradient_checkpointing: {type(self.lm).__name__} cannot recompute activations "
                f"({error}). Use model.gradient_checkpointing=false."
            ) from error

    # --- entering roles -------------------------------------------------------------------------------------

    @contextmanager
    def role(self, role: str, *, train: bool | None = None) -> Iterator[None]:
        """Forwards go through this role's adapter; with `train`, in that mode. All is as before on exit."""
        adapter = self.adapter_of(role)
        with self._switch.restored(), nullcontext() if train is None else mode(self.model, train):
            self._switch.to(adapter)
            yield

    @contextmanager
    def training(self, roles: Sequence[str]) -> Iterator[list[nn.Parameter]]:
        """Train mode, in which only these roles' adapters and heads have gradients; gives their parameters.

        The backward pass must run inside. Dropout is as `lora.dropout` has it; see `without_dropout`.
        """
        chosen = [p for role in dict.fromkeys(roles) for p in self.parameters(role)]
        ids = {id(p) for p in chosen}
        with requires_grad(self.model, ids), requires_grad(self.heads, ids), mode(self.model, True):
            yield chosen

    def head(self, role: str) -> ScalarHead:
        """A role's scalar head.

        Raises:
            ModelError: it has none.
        """
        if role not in self.heads:
            raise ModelError(
                f"{role} has no scalar head; there are heads of {', '.join(self.heads) or 'none'}."
            )
        found = self.heads[role]
        assert isinstance(found, ScalarHead)
        return found

    def parameters(self, role: str) -> list[nn.Parameter]:
        """A role's own parameters: its adapter, unless it shares another role's, and its head."""
        own = adapters.parameters(self.model, role) if self.adapter_of(role) == role else []
        return own + (list(self.heads[role].parameters()) if role in self.heads else [])

    def without_dropout(self) -> AbstractContextManager[None]:
        """A context in which no layer drops anything."""
        return no_dropout(self.model)

    @contextmanager
    def lend(self, role: str) -> Iterator[Any]:
        """The PEFT model with this role active and its adapter alone trainable; all is restored after."""
        with borrowed(self.model), self._switch.restored():
            self._switch.to(self.adapter_of(role))
            chosen = {id(p) for p in self.parameters(role)}
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in chosen)
            yield self.model

    def view(self, role: str) -> RoleView:
        """A role as a module without parameters, for trainers that want a reference model."""
        return RoleView(lambda: self.role(role, train=False), self.lm)

    @contextmanager
    def decoder(self, role: str, merge: bool | None = None) -> Iterator[Any]:
        """The causal LM in eval mode as this role, without gradients, for decoding.

        Args:
            role: whose adapter. With merged weights, no role of another adapter can be entered inside.
            merge: dense merged weights; None: as `merge_rollouts` says.
        """
        adapter = self.adapter_of(role)
        merge = self.merge_rollouts if merge is None else merge
        if merge is None:
            merge = fits(self.lm, self.dtype, self.device)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.role(role, train=False))
            if merge:
                stack.enter_context(merged(self.lm, adapter, self.dtype))
                stack.enter_context(self._switch.pinned(adapter))
            yield self.lm
