"""Rectifiers that are called by other names: clamps, thresholds, the random leaky one."""

from pathlib import Path

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.graph.capture import capture
from networks import Model
from probed import same_names

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def test_rectifiers_written_as_clamps_and_thresholds():
    class Clamps(nn.Module):
        def __init__(self):
            super().__init__()
            self.threshold, self.rrelu = nn.Threshold(0, 0), nn.RReLU()

        def forward(self, x):
            x = self.threshold(self.rrelu(x))
            x = torch.clamp(x - 0.5, min=0) + x.clamp_min(0) + x.clip(0, 6) + (x - 1).clamp_(0, max=2.5)
            x = x / x.norm().clamp(min=1e-6)  # what follows is no rectifier
            return x.clamp(-50, 50) + x.clamp(max=1) + x.long().clamp(min=0) + x.clamp(min=x.mean())

    model, x = Clamps().eval(), torch.randn(8, 3)
    names = same_names(model, x)
    assert names == ["rrelu", "threshold", "forward", "forward#2", "forward#3", "forward#4"]
    kinds = [site.kind for site in capture(model, x).sites]
    assert kinds == ["rrelu", "relu", "relu", "relu", "relu6", "hardtanh"]


@pytest.mark.parametrize("act", [nn.RReLU(0.1, 0.3), nn.Threshold(0, 0), Model(lambda m, x: x.clamp(0, 2.5))])
@pytest.mark.parametrize("shift", [-9.0, 9.0, 0.0])
def test_rectifiers_written_otherwise(act: nn.Module, shift: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 2)).double().eval()
    model[0].bias.data += shift
    x = torch.rand(50, 3).double() * 2 - 1
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    result = lc.collapse(model, x, probe.report())
    assert result.max_abs_error < 1e-12
    assert len(result.collapsed) == (1 if shift else 0)
    result.save(tmp_path)
    assert torch.equal(lc.load(tmp_path)(x), result.model(x))
