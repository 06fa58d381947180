"""Capture: sites by call, names, feeding layers, dependence; on the networks that users have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layercollapse as lc
from layercollapse.zoo.models import build


def hugging_face(name: str) -> tuple[nn.Module, object]:
    transformers = pytest.importorskip("transformers")
    image = torch.zeros(1, 3, 64, 64)
    if name == "resnet18":
        config = transformers.ResNetConfig(
            depths=[2, 2, 2, 2], layer_type="basic", hidden_sizes=[8, 16, 24, 32], embedding_size=8
        )
        return transformers.ResNetForImageClassification(config), image
    if name == "mobilenet_v2":
        return transformers.MobileNetV2ForImageClassification(
            transformers.MobileNetV2Config(depth_multiplier=0.35)
        ), image
    if name == "bert":
        config = transformers.BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
        )
        ids = torch.zeros(1, 8, dtype=torch.long)
        return transformers.BertForSequenceClassification(config), {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "sites", "kind"), [("resnet18", 17, "relu"), ("mobilenet_v2", 35, "relu6"), ("bert", 2, "gelu")]
)
def test_sites_of_transformers(name: str, sites: int, kind: str) -> None:
    capture = lc.capture(*hugging_face(name))
    assert len(capture.sites) == sites
    assert {site.kind for site in capture.sites} == {kind}
    assert all(site.feeding for site in capture.sites)


@pytest.mark.parametrize(("name", "sites"), [("resnet18", 17), ("mobilenet_v2", 35), ("vgg16_bn", 15)])
def test_sites_of_our_networks(name: str, sites: int) -> None:
    model = build(name, num_classes=10, in_channels=1, image_size=28, width=8)
    capture = lc.capture(model, torch.zeros(1, 1, 28, 28))
    assert len(capture.sites) == sites
    assert len({site.name for site in capture.sites}) == sites


def test_shared_relu_of_a_block_is_two_sites() -> None:
    model = build("resnet18", num_classes=10, in_channels=1, image_size=28, width=8)
    capture = lc.capture(model, torch.zeros(1, 1, 28, 28))
    assert capture.site("layer2.0.relu").feeding == ("layer2.0.conv1.weight",)
    assert set(capture.site("layer2.0.relu#2").feeding) == {"layer2.0.conv2.weight", "layer2.0.downsample.0.weight"}
    assert capture.site("layer2.1.relu#2").feeding == ("layer2.1.conv2.weight",)  # the identity brings none
    assert capture.output_weights == ("fc.weight",)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        y = torch.relu_(self.b(x))
        return self.c(F.leaky_relu(y + x, 0.1))


def test_functional_and_in_place_calls() -> None:
    capture = lc.capture(Functional(), torch.zeros(2, 4))
    assert [(s.name, s.kind, s.feeding) for s in capture.sites] == [
        ("forward", "relu", ("a.weight",)),
        ("forward#2", "relu", ("b.weight",)),
        ("forward#3", "leaky_relu", ()),
    ]


class PreActivation(nn.Module):
    """An in-place rectifier on a tensor that is used again: the skip sees the changed values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.a(x)
        return self.b(self.relu(x)) + x


class ViewThenInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        F.relu(x.view(-1, 2, 2), inplace=True)
        return self.b(x)


class AliasThenInPlace(nn.Module):
    """The change shows in the tensor that the alias came from."""

    def __init__(self, alias) -> None:
        super().__init__()
        self.a, self.b, self.alias = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), alias

    def forward(self, x):
        x = self.a(x)
        self.alias(x).relu_()
        return self.b(x)


ALIASES = (
    lambda h: h.movedim(1, 2),
    lambda h: h.mT,
    lambda h: h.view_as(h),
    lambda h: torch.swapaxes(h, 1, 3),
    lambda h: h.unfold(2, 2, 2),
    lambda h: h.diagonal(dim1=2, dim2=3),
    lambda h: h.as_strided((2, 2), (1, 1)),
    lambda h: torch.tensor_split(h, 2, 1)[1],
    lambda h: torch.hsplit(h, 2)[0],
    lambda h: F.dropout(h, 0.5, training=False),
)


@pytest.mark.parametrize("alias", ALIASES)
def test_in_place_on_an_alias(alias) -> None:
    x = torch.randn(3, 2, 4, 4)
    result = lc.collapse(AliasThenInPlace(alias).eval(), x, None, data=[x], cost="macs")
    assert result.max_abs_error < 1e-6
    assert [site.kind for site in result.sites] == ["relu"]


@pytest.mark.parametrize("model", [PreActivation(), ViewThenInPlace()], ids=lambda m: type(m).__name__)
def test_in_place_on_a_shared_tensor(model: nn.Module) -> None:
    x = torch.randn(6, 4)
    result = lc.collapse(model, x, None, data=[x])
    assert result.max_abs_error < 1e-6


def test_the_model_keeps_its_modes_and_values() -> None:
    model = build("resnet18", num_classes=10, in_channels=1, image_size=28, width=8).train()
    model.layer1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lc.capture(model, torch.zeros(2, 1, 28, 28))
    assert model.training
    assert model.layer2.training
    assert not model.layer1.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Rows(nn.Module):
    def forward(self, x):
        return x.view(x.shape[0], 2, -1).sum(1)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_example_of_any_batch_gives_a_dynamic_one(batch: int) -> None:
    captured = lc.capture(Rows(), torch.zeros(batch, 6))
    (value,) = [node.meta["val"] for node in captured.graph.nodes if node.op == "placeholder"]
    assert not isinstance(value.shape[0], int)


def test_the_batch_stays_dynamic_behind_a_starred_argument() -> None:
    class Starred(nn.Module):
        def forward(self, *inputs):
            return inputs[0].view(inputs[0].shape[0], -1) + inputs[1]

    captured = lc.capture(Starred(), (torch.zeros(3, 2, 2), torch.zeros(4)))
    assert any("sym_size" in str(node.target) for node in captured.graph.nodes)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return torch.relu(self.linear(x))


def test_a_block_under_autocast_is_part_of_the_graph() -> None:
    captured = lc.capture(Autocast(), torch.randn(2, 4))
    assert [site.kind for site in captured.sites] == ["relu"]
    assert any("bfloat16" in str(node.kwargs) for node in captured.graph.nodes)


class Counting(nn.Module):
    """Counts its calls in one buffer in place, and in another by a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.full((4,), float("nan")))

    def forward(self, x):
        self.calls += 1
        self.last = x.mean(0)
        return torch.relu(self.linear(x))


def test_buffers_that_a_forward_pass_changes_are_put_back() -> None:
    model = Counting()
    last = model.last
    lc.collapse(model, torch.randn(2, 4))
    assert model.calls == 0
    assert model.last is last
    assert bool(last.isnan().all())


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4)])
def test_every_size_stays_dynamic_but_those_that_the_weights_fix(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.ReLU())
    x = torch.randint(7, shape) if len(shape) == 2 else torch.randn(shape)
    captured = lc.capture(model if len(shape) == 2 else model[1:], x)
    node = next(node for node in captured.graph.nodes if node.name in captured.inputs)
    assert [str(size).isdigit() for size in node.meta["val"].shape] == [False, False, True][: len(shape)]


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            return self.linear(x)
        return x


def test_errors_say_what_stopped() -> None:
    with pytest.raises(lc.LayerCollapseError, match=r"if x.sum\(\) > 0"):
        lc.capture(DataDependent(), torch.randn(2, 4))
    with pytest.raises(lc.LayerCollapseError, match=r"example_inputs.*\(2, 5\)"):
        lc.capture(nn.Linear(4, 4), torch.randn(2, 5))
    with pytest.raises(lc.LayerCollapseError, match=r"example_inputs.*got int"):
        lc.capture(nn.Linear(4, 4), 3)
    with pytest.raises(lc.LayerCollapseError, match=r"'nowhere' is not a rectifier site"):
        lc.capture(Functional(), torch.zeros(2, 4)).site("nowhere")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_part_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))
    with pytest.raises(lc.LayerCollapseError, match="got a scripted one at 1; torch"):
        lc.capture(model, torch.zeros(2, 4))


class _Counted:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


def _pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(16, 6)
    pruner = lc.Pruner(model, x)
    with lc.EntropyProbe(model) as probe:
        model(x)
    pruner.step(probe.report(), amount=0.5, rule="uniform")
    return model, x, pruner


def test_a_model_is_exported_once_to_prune_and_collapse_it(monkeypatch) -> None:
    export = _Counted(torch.export.export)
    monkeypatch.setattr(torch.export, "export", export)
    model, x, pruner = _pruned()
    with torch.no_grad():
        model[0].weight.mul_(2)  # other values are no other model
    result = lc.collapse(model, x, captured=pruner.capture, cost="macs")
    assert export.calls == 1
    torch.testing.assert_close(result.model(x), model(x))
    assert lc.collapse(model, x, cost="macs").explain() == result.explain()
    assert export.calls == 2


def test_a_run_exports_its_model_once(monkeypatch, tmp_path) -> None:
    export = _Counted(torch.export.export)
    monkeypatch.setattr(torch.export, "export", export)
    model, x, _ = _pruned()
    exported = export.calls
    lc.run(model, train=lambda m: m, evaluate=lambda m: 90.0, data=[x], steps=1, out=tmp_path / "run")
    assert export.calls == exported + 3  # the model; the collapsed one to save it, once to try and once at the end


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, x: (model, x[:3]), r"captured: .* \(16, 6\) float32 on cpu.* \(3, 6\)"),
        (lambda model, x: (model, {"input": x}), "captured"),
        (lambda model, x: (model.double(), x), "'0.weight' is .* float32 on cpu, and now it is .* float64"),
        (lambda model, x: (nn.Sequential(*model, nn.ReLU()), x), "captured: .* one of other modules"),
        (lambda model, x: (nn.Sequential(*model[:1], nn.GELU(), *model[2:]), x), "captured: .* one of other modules"),
        (lambda model, x: (nn.Sequential(nn.Linear(6, 8, bias=False), *model[1:]), x), "'0.bias' is .* it is missing"),
        (lambda model, x: (nn.Sequential(*model[:4], nn.Linear(8, 4)), x), r"'4.weight' is \(3, 8\)"),
    ],
)
def test_a_capture_of_another_model_is_refused(change, message) -> None:
    model, x, pruner = _pruned()
    model, x = change(model, x)
    with pytest.raises(lc.LayerCollapseError, match=message):
        lc.collapse(model, x, captured=pruner.capture, cost="macs")


def test_a_capture_from_before_a_setting_changed_is_found_out() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.1), nn.Linear(8, 2)), torch.randn(8, 4)
    captured = lc.capture(model, x)
    model[1].negative_slope = 0.5
    with pytest.raises(lc.LayerCollapseError, match="tolerance"):
        lc.collapse(model, x, captured=captured, cost="macs")
