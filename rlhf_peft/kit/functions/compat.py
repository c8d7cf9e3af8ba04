"""Where torch's releases differ for code of others that runs in this process."""

from __future__ import annotations

import contextlib

import torch


def put_back_default_device(device: torch.device) -> None:
    """Make a device torch's default again, as it was before code of others changed it.

    torch 2.9: after `set_default_device(None)`, which puts the built-in default back, `get_default_device` raises
    AttributeError for everybody, accelerate included. The attribute that it stumbles on is then taken away, so that
    torch is as if no default had ever been set. Later releases need no help.
    """
    torch.set_default_device(None if device.type == "cpu" else device)
    try:
        torch.get_default_device()
    except AttributeError:
        with contextlib.suppress(AttributeError):
            del torch._GLOBAL_DEVICE_CONTEXT.device_context
