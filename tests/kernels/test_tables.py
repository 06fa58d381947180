"""Tables that stay on the device: ordered on every stream, kept while a graph may read them, no more than a few."""

from types import SimpleNamespace
from weakref import ref

import pytest
import torch

from layercollapse import LayerCollapseError
from layercollapse.kernels import tables
from layercollapse.kernels.tables import Kept, Table


class Device:
    """A device that writes down what is asked of its streams and memory."""

    is_cuda, device = True, "cuda:0"

    def __init__(self, monkeypatch):
        self.log, self.capturing = [], False
        self.stream = self.new_stream("first")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.stream)
        monkeypatch.setattr(tables, "capturing", lambda tensor: self.capturing)

    def new_stream(self, name):
        log = self.log.append
        return SimpleNamespace(
            name=name,
            record_event=lambda: log(("event", name)) or f"after the copy on {name}",
            wait_event=lambda event: log(("wait", name, event)),
        )

    def pin_memory(self):  # of the numbers
        return self

    def to(self, device, non_blocking):
        self.log.append(("copy", self.stream.name, device, non_blocking))
        return self

    def record_stream(self, stream):
        self.log.append(("in use", stream.name))


def test_another_stream_waits_for_the_copy_and_holds_the_memory(monkeypatch):
    device = Device(monkeypatch)
    table = Table(device, device)
    assert device.log == [("copy", "first", "cuda:0", True), ("event", "first")]
    del device.log[:]
    assert table.here() is device
    assert not device.log
    device.stream = device.new_stream("second")
    assert table.here() is device
    assert device.log == [("wait", "second", "after the copy on first"), ("in use", "second")]
    del device.log[:]
    device.capturing = True  # where an event from outside may not be waited for
    assert table.here() is device
    assert not device.log


def test_on_the_cpu_there_is_nothing_to_copy():
    numbers = torch.arange(3)
    assert Table(numbers, torch.ones(1)).here() is numbers


class Value:
    """Something on a device."""


def test_the_least_recent_goes(monkeypatch):
    made, like = [], torch.ones(1)
    kept = Kept(2)

    def get(key):
        return kept.get(key, lambda: made.append(key) or Value(), like, "op", "tensors")

    first = get("a")
    assert get("b") is not first
    assert get("a") is first
    get("c")
    assert get("a") is first
    assert made == ["a", "b", "c"]
    get("b")
    assert (made, len(kept)) == (["a", "b", "c", "b"], 2)


def test_what_somebody_holds_is_not_made_again():
    kept, like = Kept(1), torch.ones(1)
    value = kept.get("a", Value, like, "op", "tensors")
    kept.get("b", Value, like, "op", "tensors")
    assert kept.get("a", Value, like, "op", "tensors") is value
    kept.get("b", Value, like, "op", "tensors")
    gone = ref(value)
    del value
    assert gone() is None


def test_what_a_graph_reads_is_made_before_and_never_freed(monkeypatch):
    kept, like = Kept(1), torch.ones(1)
    value = kept.get("a", Value, like, "op", "tensors")
    monkeypatch.setattr(tables, "capturing", lambda tensor: True)
    with pytest.raises(LayerCollapseError, match="op: expected a call with these tensors before a CUDA graph captures"):
        kept.get("b", Value, like, "op", "tensors")
    assert kept.get("a", Value, like, "op", "tensors") is value
    monkeypatch.setattr(tables, "capturing", lambda tensor: False)
    kept.get("b", Value, like, "op", "tensors")
    kept.clear()
    assert kept._captured == [value]
