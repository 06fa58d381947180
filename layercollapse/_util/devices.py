"""Whose default device: algebra makes its tensors on the CPU, a model makes its own where the user has said.

`torch.set_default_device` decides where every ``torch.zeros`` goes, also those of a library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_users: ContextVar[torch.device | None] = ContextVar("default device of the user", default=None)


@contextmanager
def on_cpu() -> Iterator[None]:
    """The block with the CPU as the default device, but for what is inside `default_device`."""
    device = torch.get_default_device()
    if device.type == "cpu":  # without a mode, which would cost time at every call
        yield
        return
    token = _users.set(device)
    try:
        with torch.device("cpu"):
            yield
    finally:
        _users.reset(token)


@contextmanager
def default_device() -> Iterator[None]:
    """The block with the default device that the user has set, inside `on_cpu`."""
    device = _users.get()
    if device is None:
        yield
        return
    token = _users.set(None)
    try:
        with device:
            yield
    finally:
        _users.reset(token)
