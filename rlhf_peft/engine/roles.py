"""Which roles there are: made, copied, loaded, saved and removed."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from . import adapters, artifacts
from . import fingerprint as fingerprints
from .active_adapter import ActiveAdapter
from .adapters import LoraSpec
from .head import ScalarHead
from .loaded_model import LoadedModel
from .targets import ALL_LINEAR, targets_of

log = logging.getLogger("rlhf_peft")

BASE = "base"
"""The raw base: there is always one, and it has no adapter."""
POLICY = "policy"
REFERENCE = "reference"
INCOMING = "incoming"
"""Name of an adapter while it is tried and before it takes its role's place."""


class Roles:
    """The roles on one base model: names that stand for an adapter, or for none, and maybe a scalar head.

    Args:
        loaded: the base model.
        lora: shape of the policy's adapter, and of others that are given none.
        seed: of the initialisation of adapters and heads.
        accepted: in what the base may differ from the one that a loaded adapter was trained on: names of its
            fingerprint.
        on_change: is called with PEFT's model whenever adapters came or went.

    Attributes:
        model: PEFT's model around the causal language model.
        heads: scalar heads by role.
        active: which adapter is active.
        targets: which layers can carry an adapter.

    Raises:
        ModelError: the policy's adapter cannot be put on this base.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        lora: LoraSpec,
        *,
        seed: int = 0,
        accepted: Collection[str] = (),
        on_change: Callable[[nn.Module], None] = lambda model: None,
    ) -> None:
        self._loaded, self._lora, self._seed, self._accepted = loaded, lora, seed, accepted
        self._on_change = on_change
        self._adapter_of: dict[str, str | None] = {POLICY: POLICY}
        self.heads = nn.ModuleDict()
        self.targets = targets_of(loaded.lm, loaded.sample_ids(), loaded.quantizer)
        self._conv1d = any(isinstance(module, Conv1D) for module in loaded.lm.modules())
        self.model = self._with_first_adapter()
        self.active = ActiveAdapter(self.model)
        on_change(self.model)

    def _with_first_adapter(self) -> Any:
        config, path = self._fitted(self._lora), self._loaded.spec.path
        if message := self.targets.left_out(self._lora.config(path)):
            log.warning("%s", message)
        try:
            with self._seeded(POLICY):
                config.base_model_name_or_path = None  # PEFT puts the folder here, with a warning.
                model = get_peft_model(self._loaded.lm, config, adapter_name=POLICY)
                config.base_model_name_or_path = path
        except ValueError as error:
            raise ModelError(f"lora.target_modules: {error}") from error
        adapters.check_places(model, POLICY, self.targets)
        model.requires_grad_(False)
        model.eval()
        return model

    @property
    def names(self) -> list[str]:
        """Names of all roles there are."""
        return list(self._adapter_of)

    def adapter_of(self, role: str) -> str | None:
        """The adapter that a role goes through; None is the raw base.

        Raises:
            ModelError: there is no such role.
        """
        if role == BASE:
            return None
        if role not in self._adapter_of:
            raise ModelError(f"there is no role {role!r} on this base; there are {', '.join(self.names)}.")
        return self._adapter_of[role]

    def add(
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
            lora: shape of its adapter; None: the base's. A copy has the shape of what it copies.
            trunk: role whose adapter it shares instead of having its own; it follows that role.
            head: give it a scalar head.
        """
        source = None if like is None else self.adapter_of(like)
        fresh = self._head(role, like) if head else None
        if trunk is not None:
            shared = self.adapter_of(trunk)
            self.remove(role)
            self._adapter_of[role] = shared
        elif source is not None:
            weights = adapters.snapshot(self.model, source)
            self._put(role, self.model.peft_config[source], weights)
        else:
            self._put(role, lora or self._lora)
        self._set_head(role, fresh)

    def _head(self, role: str, like: str | None) -> ScalarHead:
        fresh = ScalarHead(self._loaded.width, self._stream(role))
        if like is not None and like in self.heads:
            fresh.load_state_dict(self.heads[like].state_dict())
        return fresh

    def _set_head(self, role: str, head: ScalarHead | None) -> None:
        if head is not None:
            self.heads[role] = head.to(self._loaded.device).requires_grad_(False)
        elif role in self.heads:
            del self.heads[role]

    def _put(
        self,
        role: str,
        shape: LoraSpec | LoraConfig,
        weights: Mapping[str, Tensor] | None = None,
        where: str = "",
    ) -> None:
        """Give a role an adapter of its own; what was there is left alone if this one does not fit."""
        config, taken = self._fitted(shape, where), role in self.model.peft_config
        with self._changing(), self._seeded(role):
            adapters.add(self.model, INCOMING if taken else role, config, self.targets, weights, where)
            if taken:
                incoming = adapters.snapshot(self.model, INCOMING)
                adapters.remove(self.model, role)
                adapters.add(self.model, role, config, self.targets, incoming)
                adapters.remove(self.model, INCOMING)
        self._adapter_of[role] = role

    def _fitted(self, shape: LoraSpec | LoraConfig, where: str = "") -> LoraConfig:
        """A configuration for this base; one of a recipe goes on those of its layers that can carry an adapter."""
        from_recipe = isinstance(shape, LoraSpec)
        config = shape.config(self._loaded.spec.path) if isinstance(shape, LoraSpec) else shape
        adapters.check_targets(self._loaded.lm, config, self.targets, where)
        able, unable = self.targets.chosen(config)
        if from_recipe:
            adapters.check_able(config, self.targets)
        narrowed = config.target_modules == ALL_LINEAR or (from_recipe and unable)
        return adapters.fitted(config, able if narrowed else None, self._conv1d, self._loaded.spec.path)

    def _stream(self, role: str) -> torch.Generator:
        """A role's own random numbers: what other roles do does not change how it begins."""
        words = self._seed * 1_000_003 + zlib.crc32(role.encode())
        return torch.Generator().manual_seed(words % 2**63)

    def _seeded(self, role: str) -> AbstractContextManager[None]:
        return self._loaded.seeded(int(torch.randint(2**31, (1,), generator=self._stream(role))))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Adapters may come and go; the same one is active on exit, in layers that are new as well."""
        with self.active.restored():
            try:
                yield
            finally:
                self.active.refresh()
                self.model.train(self.model.training)  # New adapters too: see `module_state.mode`.
                self._on_change(self.model)

    def remove(self, role: str) -> None:
        """Forget a role, if there is one; free its head, and its adapter unless another role shares it.

        Raises:
            ModelError: it is the policy, or it is entered.
        """
        adapter = self._adapter_of.get(role)
        if role == POLICY:
            raise ModelError("the policy cannot be removed from a base; it can be replaced.")
        sharers = [other for other, name in self._adapter_of.items() if name == adapter and other != role]
        if adapter is not None and not sharers:
            if self.active.state.adapters == (adapter,):
                raise ModelError(f"{role} is entered and cannot be removed; leave its context first.")
            with self._changing():
                adapters.remove(self.model, adapter)
        self._adapter_of.pop(role, None)
        self._set_head(role, None)

    def load(self, role: str, reference: str, *, head: bool = False) -> Path:
        """Make a role from something saved: a run, a folder or a hub id; returns the folder it was read from.

        Raises:
            ModelError: nothing is there, it was trained on another base, it does not fit this one, or a head is wanted
                and there is none.
        """
        stored = artifacts.read(artifacts.resolve(reference, role))
        wrong = fingerprints.refusal(stored.folder, self._loaded.fingerprint, self._accepted)
        if wrong:
            raise ModelError(wrong)
        if head and stored.head is None:
            key = role.rsplit("-", 1)[0]
            raise ModelError(
                f"init.{key}: {stored.folder} has no scalar head ({artifacts.HEAD_FILE}, or one inside the "
                f"adapter), so it cannot be a {role}."
            )
        where = str(stored.folder)
        fresh = (
            artifacts.load_head(self._loaded.width, stored.head, where)
            if head and stored.head is not None
            else None
        )
        self._put(role, stored.config, stored.weights, f"{where}: ")
        self._set_head(role, fresh)
        return stored.folder

    def load_ensemble(self, prefix: str, reference: str) -> list[str]:
        """Make `<prefix>-0`, `<prefix>-1`, ... of all that a run has of them, or `<prefix>-0` of a single one.

        Roles of that prefix that were there before are gone. Returns the names.

        Raises:
            ModelError: nothing is there, one does not fit this base, or one has no head.
        """
        names = artifacts.members(reference, prefix) or [f"{prefix}-0"]
        for name in names:
            self.load(name, reference, head=True)
        for role in self.names:
            if role.startswith(f"{prefix}-") and role not in names:
                self.remove(role)
        return names

    def save(self, role: str, folder: Path) -> None:
        """Write a role's adapter and head in PEFT's format.

        Raises:
            ModelError: the role has no adapter of its own.
        """
        adapter = self.adapter_of(role)
        if adapter is None:
            raise ModelError(f"{role} is the raw base; there is nothing to save.")
        artifacts.write(self._snapshot(role, adapter), folder)

    def save_zero(self, folder: Path) -> None:
        """Write an adapter of the policy's shape that changes nothing, in PEFT's format: the raw base.

        Args:
            folder: where to.
        """
        zero = self._snapshot(POLICY, self.adapter_of(POLICY))
        weights = {name: torch.zeros_like(weight) for name, weight in zero.weights.items()}
        artifacts.write(replace(zero, weights=weights, head=None), folder)

    def snapshot(self, role: str) -> artifacts.RoleSnapshot:
        """A copy of what is a role's own: its adapter, unless it shares another role's, and its head."""
        adapter = self.adapter_of(role)
        own = adapter if adapter == role else None
        return self._snapshot(role, own)

    def _snapshot(self, role: str, adapter: str | None) -> artifacts.RoleSnapshot:
        head = self.head(role) if self.has_head(role) else None
        return artifacts.snapshot(self.model, adapter, self._loaded.spec.path, self._loaded.fingerprint, head)

    def has_head(self, role: str) -> bool:
        """Whether the role has a scalar head."""
        return role in self.heads

    def head(self, role: str) -> ScalarHead:
        """A role's scalar head.

        Raises:
            ModelError: it has none.
        """
        if role not in self.heads:
            raise ModelError(
                f"{role} has no scalar head; there are heads of {', '.join(self.heads) or 'none'}."
            )
        head = self.heads[role]
        assert isinstance(head, ScalarHead)
        return head

    def parameters(self, role: str) -> list[nn.Parameter]:
        """A role's own parameters: its adapter, unless it shares another role's, and its head."""
        own = adapters.parameters(self.model, role) if self.adapter_of(role) == role else []
        return own + (list(self.heads[role].parameters()) if role in self.heads else [])

    def fill(
        self, role: str, weights: Mapping[str, Tensor] | None, head: Mapping[str, Tensor] | None, where: str
    ) -> None:
        """Give a role that is there the tensors that were kept of it; its parameters stay the same objects.

        Args:
            role: its name.
            weights: of its adapter; None where it shares another role's.
            head: of its scalar head, where it has one.
            where: begins the message where something does not fit.

        Raises:
            ModelError: a tensor is missing, unexpected or misshapen.
        """
        if self.adapter_of(role) == role:
            adapters.fill(self.model, role, weights or {}, f"{where}: ")
        if role in self.heads:
            made = artifacts.load_head(self._loaded.width, head or {}, where)
            self.heads[role].load_state_dict(made.state_dict())

    def is_zero(self, role: str) -> bool:
        """Whether the role's adapter changes nothing: it is None, or every B is zero."""
        adapter = self.adapter_of(role)
        if adapter is None:
            return True
        weights = adapters.state(self.model, adapter)
        return all(not bool(value.any()) for key, value in weights.items() if "lora_B" in key)

    def freeze_reference(self) -> None:
        """Make the reference what the policy is now: the raw base if it is that, else a frozen copy."""
        if self.is_zero(POLICY):
            self.remove(REFERENCE)
            self._adapter_of[REFERENCE] = None
        else:
            self.add(REFERENCE, like=POLICY)
