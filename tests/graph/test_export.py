"""Models that torch.export takes in its own way: vmapped, exported before, fused; and what it says about others."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state

import layercollapse as lc

pytestmark = pytest.mark.usefixtures("seeded")


def net():
    layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    nn.init.constant_(layers[0].bias, 50.0)
    return layers


class Ensemble(nn.Module):
    """Three networks as one, their weights stacked."""

    def __init__(self):
        super().__init__()
        stacked, _ = stack_module_state([net() for _ in range(3)])
        self.names = {name: name.replace(".", "_") for name in stacked}
        for name, value in stacked.items():
            self.register_parameter(self.names[name], nn.Parameter(value.detach()))
        self.base = [net().to("meta")]

    def forward(self, x):
        parameters = {name: getattr(self, own) for name, own in self.names.items()}
        return torch.vmap(lambda own, x: functional_call(self.base[0], own, (x,)), (0, None))(parameters, x)


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return torch.vmap(self.net)(x)


@pytest.mark.parametrize("kind", [Ensemble, Rows])
def test_vmapped_models(kind):
    model, x = kind(), torch.randn(4, 6).double()
    assert len(lc.capture(model, x).sites) == 2
    result = lc.collapse(model, x, cost="macs")
    assert result.max_abs_error < 1e-12
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-12)
    with lc.EntropyProbe(model) as probe, pytest.raises(lc.LayerCollapseError, match=r"^site .* torch.vmap"):
        model(x)
    assert not probe.calls()


def test_modules_of_exported_programs(tmp_path):
    x = torch.randn(4, 6).double()
    lc.collapse(net(), x, cost="macs").save(tmp_path)
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    exported = torch.export.export(net(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    for model in (loaded, exported, nn.Sequential(exported, nn.ReLU())):
        modes = [module.training for module in model.modules()]
        result = lc.collapse(model, x, cost="macs")
        assert [module.training for module in model.modules()] == modes
        assert result.max_abs_error < 1e-12
        assert len(result.sites) == sum(isinstance(module, nn.ReLU) for module in model.modules()) + 2
        lc.Pruner(model, x)
        with pytest.raises(NotImplementedError):
            exported.train()


def test_a_transformer_encoder_with_a_padding_mask():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x, mask):
            return self.encoder(x, src_key_padding_mask=mask)

    model, x = Encoder().eval(), torch.randn(3, 5, 8).double()
    mask = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]).bool()
    result = lc.collapse(model, (x, mask), cost="macs")
    assert result.max_abs_error < 1e-12
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():  # where torch fuses the layers, and gives zeros at padded positions
        torch.testing.assert_close(result.model(x, mask)[~mask], model(x, mask)[~mask], rtol=0, atol=1e-12)


def test_decoders_are_captured_without_their_cache():
    class Config:
        use_cache = True

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.net = Config(), net()

        def forward(self, x):
            y = self.net(x)
            return (y, {"cache": object()}) if self.config.use_cache else (y,)

    model, x = Decoder(), torch.randn(4, 6).double()
    assert lc.collapse(model, x, cost="macs").max_abs_error < 1e-12
    assert model.config.use_cache is True


@pytest.mark.long
def test_an_error_of_capture_is_all_that_is_said():
    program = """
        import torch, layercollapse as lc
        class Branches(torch.nn.Module):
            def forward(self, x):
                return x * 2 if x.sum() > 0 else x
        for inputs in (torch.randn(4, 6), torch.randn(1, 6)):
            try:
                lc.capture(Branches(), inputs)
            except lc.LayerCollapseError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.count("model: torch.export must be able to capture Branches") == 2
    assert done.stderr == ""
