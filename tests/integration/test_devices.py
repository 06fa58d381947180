"""Settings of torch around a call: a default device, and inference mode."""

import pytest
import torch
from torch import nn

import layercollapse as lc

pytestmark = pytest.mark.usefixtures("seeded")


class Positions(nn.Module):
    """Makes a tensor on the default device."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        device = torch.zeros(()).device
        assert device == torch.get_default_device(), device
        return self.last(self.first(x).relu())


@pytest.fixture
def on_meta():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_the_default_device_is_the_models_and_not_the_algebras(on_meta, tmp_path):
    with torch.device("cpu"):
        model, x = Positions(), torch.randn(16, 6)
        nn.init.constant_(model.first.bias, 50.0)

    class Checks(Positions):
        def forward(self, x):
            assert torch.get_default_device().type == "meta"
            return super().forward(x)

    model.__class__ = Checks
    pruner = lc.Pruner(model, x)
    with lc.EntropyProbe(model) as probe:
        model(x)
    pruner.step(probe.report(), amount=0.3, rule="uniform")
    result = lc.collapse(model, x, probe.report(), data=[x])
    assert torch.get_default_device().type == "meta"
    assert result.collapsed == ("forward",)
    assert {p.device.type for p in result.model.parameters()} == {"cpu"}
    torch.testing.assert_close(result.model(x), model(x))
    result.save(tmp_path)
    torch.testing.assert_close(lc.load(tmp_path)(x), result.model(x))


def test_what_is_made_in_inference_mode_can_be_trained(tmp_path):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.inference_mode():
        x = torch.randn(16, 6)
        pruner = lc.Pruner(model, x)
        with lc.EntropyProbe(model) as probe:
            model(x)
        report = probe.report()
        pruner.step(report, amount=0.3, rule="uniform")
        pruner.load_state_dict(pruner.state_dict())
        result = lc.collapse(model, x, data=[x])
        result.save(tmp_path)
        loaded = lc.load(tmp_path)
    pruner.step(report, amount=0.3, rule="uniform")
    assert pruner.density < 0.6
    for made in (result.model, loaded):
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        made(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        assert all(p.grad is not None for p in made.parameters())
