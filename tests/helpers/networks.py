"""Small models for tests of the compiler, and how they are measured and collapsed."""

from __future__ import annotations

import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.ir.graph import Net


class Model(nn.Module):
    """A function as a model, with its layers."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def lowered(model: nn.Module, x: torch.Tensor) -> Net:
    """The records of a model in evaluation mode, as no pass has changed them."""
    return lower(lc.capture(model.eval(), x), model)


def report_on(model: nn.Module, x: torch.Tensor) -> lc.EntropyReport:
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    return probe.report()


def agrees_exactly(model: nn.Module, x: torch.Tensor) -> lc.CollapseResult:
    """Collapse without a report, and compare in float64, also for another batch."""
    result = lc.collapse(model.eval(), x, None, cost="macs")
    for batch in (x, torch.cat([x, -2 * x, 3 * x])):
        torch.testing.assert_close(result.model(batch), model(batch), atol=1e-10, rtol=1e-10)
    assert result.after.macs <= result.before.macs
    assert result.after.parameters <= result.before.parameters
    return result


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 4, 3, padding=1), nn.PReLU(4)
        )
        self.dead = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.dead.weight.data.zero_()

    def forward(self, x):
        x = self.features(x)
        x = torch.relu(x + self.features[3](torch.relu(self.dead(x))))
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def shrinking() -> tuple[nn.Module, torch.Tensor]:
    """Two linear layers in sequence, then one of whose 20 inputs 11 are read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 4))
    model[3].weight.data[:, 11:] = 0
    return model, torch.randn(5, 6)
