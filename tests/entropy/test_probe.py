"""The probe against a count of stored activations, and against the names that the graph capture gives."""

import copy
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layercollapse import LayerCollapseError
from layercollapse.entropy.probe import EntropyProbe, EntropyReport
from probed import brute, same_names, two_sites

pytestmark = pytest.mark.usefixtures("nothing_left_behind")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Mixed(nn.Module):
    """Every way to call a rectifier; `store` keeps what each of them saw, as (name, tensor, channel dim, upper)."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.conv1d = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv1d(6, 5, 3)
        self.relu, self.relu6, self.leaky = nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1)
        self.block = nn.Sequential(nn.Linear(5, 7), nn.PReLU())
        self.tanh = nn.Hardtanh(-0.5, 0.25)
        self.seen = []

    def store(self, name, x, dim, lower=0.0, upper=None):
        self.seen.append((name, x.detach().clone(), dim, lower, upper))
        return x

    def forward(self, x):
        x = self.relu(self.store("relu", self.bn(self.conv(x)), 1))
        x = self.relu(self.store("relu#2", x - 0.3, 1))
        x = F.relu(self.store("forward", -x + 0.1, 1), inplace=True)
        x = self.relu6(self.store("relu6", 40 * x - 1, 1, 0, 6))
        x = torch.relu_(self.store("forward#2", x - x.mean(), 1))
        x = self.conv1d(x.flatten(2))
        x = self.leaky(self.store("leaky", x, 1))
        x = x.transpose(1, 2)
        y = self.block[0](x)
        self.store("block.1", y, 2)
        x = self.block(x)
        x = self.tanh(self.store("tanh", x, 2, -0.5, 0.25)) + y
        x = x.mean(1)
        x = self.store("forward#3", x, 1).relu()
        return torch.ops.aten.relu(self.store("forward#4", x - 0.1, 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_counts_equal_those_of_stored_activations(device, training, grad):
    model = Mixed().train(training).to(device)
    with EntropyProbe(model) as probe:
        for size in (9, 12, 9):
            with grad():
                model(torch.randn(4, 3, size, size, device=device))
        model(torch.randn(4, 3, 9, 9, device=device))
    report = probe.report()
    assert [layer.name for layer in report] == list(dict.fromkeys(name for name, *_ in model.seen))
    for layer in report:
        expected = sum(brute(*rest) for name, *rest in model.seen if name == layer.name)
        assert torch.equal(layer.counts, expected), layer.name
    assert report["relu6"].kind == "relu6"
    assert report["tanh"].kind == "hardtanh"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode])
def test_patterns_are_those_of_stored_activations(device, grad):
    model = Mixed().eval().to(device)
    with EntropyProbe(model, patterns=True) as probe:
        for size in (9, 12, 9):
            with grad():
                model(torch.randn(4, 3, size, size, device=device))
    report = probe.report()
    for layer in report:
        rows = Counter()
        for name, x, dim, lower, _ in model.seen:
            if name == layer.name:
                rows.update(map(tuple, (x.movedim(dim, -1).flatten(0, -2).double() > lower).tolist()))
        assert sorted(layer.patterns.counts.tolist()) == sorted(rows.values()), layer.name
        assert layer.patterns.rows == rows.total() == layer.samples
        assert layer.patterns.channels == layer.neurons
        neurons = layer.counts[:, 2] / layer.counts[:, :3].sum(1)
        bits = torch.special.entr(torch.stack([neurons, 1 - neurons])).sum(0) / math.log(2)
        assert float(bits.max()) - 1e-6 <= layer.patterns.entropy <= float(bits.sum()) + 1e-6
    again = EntropyReport.from_json(report.to_json())
    assert again.table() == report.table()
    twice = report.merge(again)
    for one, two in zip(report, twice, strict=True):
        assert (two.patterns.distinct, two.patterns.rows) == (one.patterns.distinct, 2 * one.patterns.rows)


def test_patterns_of_written_activations_and_of_what_is_no_padding():
    class Written(nn.Module):
        def forward(self, x):
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    x = torch.tensor([[1.0, -1.0], [2.0, -2.0], [-1.0, 1.0], [3.0, 3.0]])
    with EntropyProbe(Written(), patterns=True) as probe:
        probe.model(x)
    (layer,) = probe.report()
    assert sorted(layer.patterns.counts.tolist()) == [1, 1, 2]
    with EntropyProbe(nn.Sequential(nn.ReLU()), patterns=True) as probe:
        probe.keep(torch.tensor([[True, True], [False, True]]))
        probe.model(x.view(2, 2, 2))
    (layer,) = probe.report()
    assert (layer.patterns.rows, layer.patterns.distinct) == (3, 2)


def test_patterns_are_counted_on_request_only():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with EntropyProbe(model) as probe:
        model(torch.randn(5, 3))
    assert probe.report()["1"].patterns is None
    assert "patterns" not in probe.report().table()
    with pytest.raises(LayerCollapseError, match="patterns: expected True or False, got 3"):
        EntropyProbe(model, patterns=3)


def test_names_agree_with_the_capture():
    names = same_names(Mixed().eval(), torch.randn(2, 3, 9, 9))
    assert names[:4] == ["relu", "relu#2", "forward", "relu6"]


@pytest.mark.parametrize("device", DEVICES)
def test_outputs_and_gradients_do_not_change(device):
    model = Mixed().to(device)
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 9, 9, device=device)
    expected = twin(x)
    with EntropyProbe(model):
        result = model(x)
    assert torch.equal(result, expected)
    result.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_float64_and_autocast():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
    x = torch.randn(20, 4)
    with EntropyProbe(model) as probe, torch.autocast("cpu", torch.bfloat16):
        model(x)
        seen = model[0](x)
    assert seen.dtype == torch.bfloat16
    assert torch.equal(probe.report()["1"].counts, brute(seen, 1, 0, None))
    double = model.double()
    with EntropyProbe(double) as probe:
        double(x.double() * 1e-300)
    assert probe.report()["1"].samples == 20


# --- models that people have ------------------------------------------------------------------------------


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[2, 2, 2, 2], layer_type="basic")
    return ResNetForImageClassification(config).eval()


def test_resnet_of_transformers():
    assert len(same_names(resnet(), torch.randn(2, 3, 32, 32))) == 17


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenet_v2", "mlp"])
def test_own_models(name):
    from layercollapse.zoo.models import build

    model = build(name, in_channels=3, image_size=32, width=4).eval()
    assert len(same_names(model, torch.randn(2, 3, 32, 32))) >= {"mlp": 1}.get(name, 15)


# --- what can go wrong ------------------------------------------------------------------------------------


def test_nothing_seen():
    model = two_sites()
    with EntropyProbe(model) as probe:
        pass
    with pytest.raises(LayerCollapseError, match=r"at least one forward pass .* got none"):
        probe.report()
    with EntropyProbe(model) as probe:
        model.forward(torch.randn(2, 3))
    with pytest.raises(LayerCollapseError, match=r"model.forward\(x\)"):
        probe.report()
    linear = nn.Linear(3, 3)
    with EntropyProbe(linear) as probe:
        linear(torch.randn(2, 3))
    with pytest.raises(LayerCollapseError, match=r"expected rectifiers .*as a clamp.* got none called by Linear"):
        probe.report()


def test_nan_names_the_sites():
    model = two_sites()
    with EntropyProbe(model) as probe:
        model(torch.full((2, 3), float("nan")))
    with pytest.raises(LayerCollapseError, match=r"got NaN at 1, 2\.1"):
        probe.report()
    probe.reset()
    with probe:
        model(torch.randn(2, 3))
    assert probe.report()["1"].samples == 2


def test_activations_that_cannot_be_counted():
    class Integers(nn.Module):
        def forward(self, x):
            return F.relu(x)

    model = Integers()
    with EntropyProbe(model), pytest.raises(LayerCollapseError, match=r"site 'forward': x: expected a dense float32.*"):
        model(torch.arange(6).reshape(2, 3))
