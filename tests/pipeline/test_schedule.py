"""Which step is chosen, and zeros that stay in any training loop."""

import pytest
import torch
from torch import nn

from layercollapse.pipeline.schedule import choose, zeros_kept
from layercollapse.prune.pruner import Pruner
from layercollapse.report.record import Step

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("steps", "max_drop", "expected"),
    [
        ([(90.0, 0), (91.0, 1), (89.6, 3), (80.0, 9)], 0.5, 2),  # the most collapsed within the budget
        ([(90.0, 0), (89.4, 5)], 0.5, 0),  # outside it
        ([(90.0, 0), (89.5, 5)], 0.5, 1),  # the limit itself is inside
        ([(90.0, 2), (92.0, 2), (91.0, 2)], 0.5, 1),  # equally shallow: the best
        ([(90.0, 0), (10.0, 4)], 100, 1),
    ],
)
def test_choose(steps, max_drop, expected):
    made = [Step(n, 1.0, top1, sites, [], [], 0.0) for n, (top1, sites) in enumerate(steps)]
    assert choose(made, max_drop) == expected


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
