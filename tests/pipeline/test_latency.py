"""Latency in turns, and inputs of other batch sizes."""

import pytest
import torch
from torch import nn

from layercollapse.pipeline.latency import latency, repeat_to

pytestmark = pytest.mark.usefixtures("one_thread")


def test_latency_takes_turns():
    calls = []

    class Recorder(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            return x

    times = latency([Recorder("a"), Recorder("b")], torch.zeros(3), seconds=0, warmup=1, minimum=4)
    assert len(times) == 2
    assert all(0 < time < 100 for time in times)
    assert "".join(calls) == "ab" + "abba" * 2


def test_repeat_to_by_hand():
    example = torch.tensor([[1.0], [2.0]])
    assert repeat_to(example, 5).flatten().tolist() == [1, 2, 1, 2, 1]
    assert repeat_to(example, 1).flatten().tolist() == [1]
