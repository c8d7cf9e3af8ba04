"""Differences between torch's releases that matter for restoring settings after foreign code."""

from __future__ import annotations

import contextlib

import torch


def put_back_default_device(device: torch.device) -> None:
    """Restore torch's default device, after foreign code has changed it.

    In torch 2.9, `get_default_device` raises AttributeError after `set_default_device(None)`, which restores the
    built-in default. The attribute that causes it is then deleted, so that torch is as if no default had ever been set.
    Later releases do not need this.
    """
    torch.set_default_device(None if device.type == "cpu" else device)
    try:
        torch.get_default_device()
    except AttributeError:
        with contextlib.suppress(AttributeError):
            del torch._GLOBAL_DEVICE_CONTEXT.device_context
