"""The one base model, and all that stands on it.

`SharedBase` puts the parts of the engine together: the loaded model, its roles (`policy`, `reference`, `reward-0`, ...,
`value`: names that stand for an adapter, or for none), their forwards, and decoding. Roles are entered as contexts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from .active_adapter import recompute_activations
from .adapters import LoraSpec
from .base_spec import BaseSpec
from .decoding import Decoding
from .fast import FastPaths, fused_lora, fused_norm
from .forwards import Forwards
from .loaded_model import LoadedModel
from .module_state import mode, no_dropout, requires_grad
from .roles import Roles
from .trainer_loan import RoleView, restored_after


class SharedBase:
    """One frozen base model, shared by all roles.

    Args:
        spec: where the base comes from and how it is held.
        lora: shape of the policy's adapter, and of others that give none.
        seed: of the initialisation of adapters and heads.
        max_length: longest row in tokens; None: what the model allows.
        gradient_checkpointing: recompute activations in the backward pass.
        merge_rollouts: decode with dense merged weights; None: if they fit in memory.
        fast: which fast paths are allowed: all, none, or some by name; see `engine.fast`.
        accepted: in what this base may differ from that of adapters which are loaded: names of its fingerprint.

    Attributes:
        roles: which roles there are, their adapters and heads.
        forwards: hidden states, log-probabilities, values and rewards.
        decoding: the model as a decoder.
        loaded: the model itself.
        max_length: longest row in tokens.

    Raises:
        ModelError: the model, its tokenizer or its quantization cannot be used here.
    """

    def __init__(
        self,
        spec: BaseSpec,
        lora: LoraSpec | None = None,
        *,
        seed: int = 0,
        max_length: int | None = None,
        gradient_checkpointing: bool = False,
        merge_rollouts: bool | None = None,
        fast: bool | Collection[str] = True,
        accepted: Collection[str] = (),
    ) -> None:
        self.loaded = LoadedModel.load(spec)
        self.max_length = self._allowed_length(max_length)
        paths = FastPaths(fast)
        self.roles = Roles(
            self.loaded,
            lora or LoraSpec(),
            seed=seed,
            accepted=accepted,
            on_change=lambda model: fused_lora.install(model, paths, self.loaded.quantizer),
        )
        fused_norm.install(self.loaded.lm, paths)
        self.forwards = Forwards(self.loaded, self.roles, paths, recomputes=gradient_checkpointing)
        self.decoding = Decoding(self, paths, merge_rollouts)
        if gradient_checkpointing:
            self._recompute_activations()

    def _allowed_length(self, max_length: int | None) -> int:
        allowed = self.loaded.context_length
        if max_length is not None and max_length > allowed:
            raise ModelError(
                f"model.max_length: {max_length} is more than the {allowed} positions of {self.loaded.spec.path}. Use "
                f"at most {allowed}."
            )
        return max_length or allowed

    def _recompute_activations(self) -> None:
        try:
            recompute_activations(self.lm, self.roles.active)
        except ValueError as error:
            raise ModelError(
                f"model.gradient_checkpointing: {type(self.lm).__name__} cannot recompute activations "
                f"({error}). Use model.gradient_checkpointing=false."
            ) from error

    # --- what others ask of the model most ------------------------------------------------------------------

    @property
    def lm(self) -> Any:
        """The causal language model of transformers, with the adapters in it."""
        return self.loaded.lm

    @property
    def model(self) -> Any:
        """PEFT's model around it."""
        return self.roles.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.loaded.tokenizer

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self.loaded.eos_ids

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding: token ids from this number on have none."""
        return self.loaded.vocab_size

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.loaded.device

    @property
    def dtype(self) -> torch.dtype:
        """That it computes in."""
        return self.loaded.dtype

    @property
    def fingerprint(self) -> dict[str, str]:
        """What this base is; saved with every adapter."""
        return self.loaded.fingerprint

    # --- entering roles -------------------------------------------------------------------------------------

    @contextmanager
    def role(self, role: str, *, train: bool | None = None) -> Iterator[None]:
        """Forwards go through this role's adapter; with `train`, in that mode. All is as before on exit."""
        adapter = self.roles.adapter_of(role)
        with self.roles.active.restored(), nullcontext() if train is None else mode(self.model, train):
            self.roles.active.to(adapter)
            yield

    @contextmanager
    def training(self, roles: Sequence[str]) -> Iterator[list[nn.Parameter]]:
        """Train mode, in which only these roles' adapters and heads have gradients; gives their parameters.

        The backward pass must run inside. Dropout is as `lora.dropout` has it; see `without_dropout`.

        Raises:
            ModelError: no gradients go through the base's quantized layers.
        """
        self.check_trainable()
        chosen = [p for role in dict.fromkeys(roles) for p in self.roles.parameters(role)]
        ids = {id(p) for p in chosen}
        with requires_grad(self.model, ids), requires_grad(self.roles.heads, ids), mode(self.model, True):
            yield chosen

    def check_trainable(self) -> None:
        """Raise ModelError if no gradients go through the base's quantized layers."""
        quantizer = self.loaded.quantizer
        if not quantizer.trainable:
            raise ModelError(
                f"model.quantization: no gradients go through the layers of {quantizer.label}, so that it can be "
                "decoded with but not trained on. Use another, such as model.quantization=nf4."
            )

    def without_dropout(self) -> AbstractContextManager[None]:
        """A context in which no layer drops anything."""
        return no_dropout(self.model)

    @contextmanager
    def lend(self, role: str) -> Iterator[Any]:
        """The PEFT model with this role active and its adapter alone trainable, for a trainer of another library.

        On exit everything but the values of its parameters is as it was.

        Raises:
            ModelError: no gradients go through the base's quantized layers.
        """
        self.check_trainable()
        with restored_after(self.model), self.roles.active.restored():
            self.roles.active.to(self.roles.adapter_of(role))
            chosen = {id(p) for p in self.roles.parameters(role)}
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in chosen)
            yield self.model

    def view(self, role: str) -> RoleView:
        """A role as a module without parameters, for trainers that want a reference model."""
        return RoleView(lambda: self.role(role, train=False), self.lm)
