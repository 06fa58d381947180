"""What a call leaves on the device for the next one with the same tensors: tables, for any stream and for graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import RLock
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from layercollapse.errors import LayerCollapseError
from layercollapse.kernels.launch import capturing

Value = TypeVar("Value")


class Table:
    """Numbers on the device of a tensor, copied there without waiting.

    The copy goes to the stream that is current when the table is made. Launches on another one are ordered behind it by
    an event, and the memory is not given to anybody else before they are done (`Tensor.record_stream`: the allocator
    knows of the first stream only). Calls that only read their tensors, such as ``topk_count``, may run side by side:
    then nobody else orders the streams.

    A capture cannot wait for an event that lies outside of it. It need not: ``torch.cuda.graph`` waits for the device
    at its beginning, so the ordinary call that came before, and made the table, is done.

    Args:
        numbers: int64, on the host.
        like: a tensor on the device.
    """

    def __init__(self, numbers: Tensor, like: Tensor) -> None:
        self._numbers, self._stream = numbers, None
        if like.is_cuda:
            self._numbers = numbers.pin_memory().to(like.device, non_blocking=True)
            self._stream = torch.cuda.current_stream(like.device)
            self._copied = self._stream.record_event()

    def here(self) -> Tensor:
        """Return the numbers for launches on the current stream of their device."""
        if self._stream is not None and not capturing(self._numbers):
            stream = torch.cuda.current_stream(self._numbers.device)
            if stream != self._stream:
                stream.wait_event(self._copied)
                self._numbers.record_stream(stream)
        return self._numbers


def tensors_key(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Hashable, ...]:
    """Return all that a plan for these tensors depends on: whatever lies at an address, it is right for it."""
    return (
        weights[0].device,
        *((w.data_ptr(), m.data_ptr(), w.dtype, w.shape, w.stride()) for w, m in zip(weights, masks, strict=True)),
    )


class Kept(Generic[Value]):
    """The last few values that calls made, and others that somebody holds, by what they depend on.

    A CUDA graph reads its tables whenever it is replayed: what was asked for while one was captured is never freed.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = RLock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._held: WeakValueDictionary[Hashable, Value] = WeakValueDictionary()
        self._captured: list[Value] = []

    def get(self, key: Hashable, make: Callable[[], Value], like: Tensor, op: str, what: str) -> Value:
        """Return the value of a key, made now if there is none.

        Args:
            key: all that the value depends on.
            make: makes it, and copies it to the device.
            like: a tensor on the device, which is the current one.
            op: that is called, for the error.
            what: must be the same as in an ordinary call before, for the error.

        Raises:
            LayerCollapseError: a graph is captured, and there is none: nothing may be copied to the device then.
        """
        with self._lock:
            captured = capturing(like)
            value = self._values.get(key) or self._held.get(key)
            if value is None:
                if captured:
                    raise LayerCollapseError(
                        f"{op}: expected a call with these {what} before a CUDA graph captures one, got none: its "
                        "tables are copied to the device, and Triton's kernels compiled, in the first"
                    )
                value = make()
            self._values[key] = self._held[key] = value
            self._values.move_to_end(key)
            if captured:
                self._captured.append(value)
            while len(self._values) > self.most:
                self._values.popitem(last=False)
            return value

    def __len__(self) -> int:
        return len(self._values)

    def clear(self) -> None:
        """Forget all but what graphs read."""
        with self._lock:
            self._values.clear()
            self._held.clear()
