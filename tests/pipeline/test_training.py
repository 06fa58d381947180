"""Zeros that stay in any training loop, and the steps as a strategy is told of them."""

import pytest
import torch
from torch import nn

from layercollapse.pipeline.training import taken, zeros_kept
from layercollapse.prune.pruner import Pruner
from layercollapse.report.record import Record, Step
from layercollapse.strategies import Taken

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_a_strategy_is_told():
    record = Record({"max_drop": 0.5}, {}, sites=["a", "b"])
    steps = ((90.0, []), (89.5, ["a"]), (89.4, ["a", "b"]))
    record.steps = [Step(n, 1.0, top1, 0, [0.5, 1.0], [], 0.0, linear=names) for n, (top1, names) in enumerate(steps)]
    entropy = {"a": 0.5, "b": 1.0}
    assert taken(record, 1) == [
        Taken((), True, False, entropy),
        Taken(("a",), True, True, entropy),
        Taken(("a", "b"), False, False, entropy),
    ]


def test_zeros_are_kept_in_any_training_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    other = nn.Linear(2, 2)
    with torch.no_grad():
        model[0].weight[:, :3] = 0
    pruner = Pruner(model, (torch.randn(2, 6),))
    seen = []
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)]
    with zeros_kept(pruner, model):
        for _ in range(3):
            model(torch.randn(4, 6)).square().sum().backward()
            other(torch.randn(4, 2)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
            seen.append(int((model[0].weight[:, :3] != 0).sum()))
    assert seen == [0, 0, 0]
    assert bool((model[0].weight[:, 3:] != 0).all())
    optimizers[0].step()
    assert int((model[0].weight[:, :3] != 0).sum()) > 0  # the hook ends with the block
