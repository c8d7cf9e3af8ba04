"""Which of the processes of `accelerate launch` this one is, and what they tell each other.

Data parallelism here: every process holds the whole base. In RL each samples and scores its own groups, then all have
all rows, so that selection, advantages and minibatches are those of one process; each computes the gradient of its own
rows, and gradients are summed. Only the main process writes, shows and evaluates.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError


class Ranks:
    """Tells which process it is, and talks to the others.

    Attributes:
        rank: of this process, 0 is the main one.
        world: number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def main(self) -> bool:
        """Whether this process writes, shows and evaluates."""
        return self.rank == 0

    def start(self, device: str) -> None:
        """Join the others, if there are any; this process then has the card of its `LOCAL_RANK`.

        Args:
            device: the recipe's.

        Raises:
            UsageError: it names one card, and there are several processes.
        """
        if self.world == 1:
            return
        if re.fullmatch(r"cuda:\d+", device):
            raise UsageError(
                f"device: {device} names one card, and {self.world} processes were started, which need one each. Use "
                "device=cuda, or start one process."
            )
        from accelerate import PartialState

        PartialState(cpu=device == "cpu" or not torch.cuda.is_available())

    def mine(self, items: list[Any]) -> list[Any]:
        """Every `world`-th of some items, beginning with the rank-th; those of all processes are all of them."""
        return items[self.rank :: self.world]

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        values: list[Any] = gather_object([value])
        return values

    def same(self, parameters: Iterable[Tensor]) -> None:
        """Give every process the main process's values of these, in place."""
        if self.world > 1:
            for parameter in parameters:
                torch.distributed.broadcast(parameter.detach(), src=0)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in one message; one that has none counts as zero."""
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if self.world > 1 and gradients:
            total = torch.cat([gradient.flatten() for gradient in gradients])
            self.total(total)
            for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def total(self, values: Tensor) -> None:
        """Add up a tensor of all processes, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(values)

    def stop(self) -> None:
        """Leave the others; the main process is waited for."""
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
