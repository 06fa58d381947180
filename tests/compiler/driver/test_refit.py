"""mode="refit": linear regions become fitted layers, and the result says which, how well, and what it changed."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import layercollapse as lc
from layercollapse.compiler.driver import api, fitting, refit
from layercollapse.compiler.tuning.variants import Variant
from networks import Model


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **more) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **more)


def nearly_one(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two padded convolutions between rectifiers that are a single one, but for weights too small to matter."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(1, 4), nn.ReLU(), conv(4, 6), conv(6, 4), nn.ReLU(), conv(4, 2, 1))
    with torch.no_grad():
        middle = model[3].weight[:, :, 1, 1].clone()
        model[3].weight.mul_(1e-9)
        model[3].weight[:, :, 1, 1] = middle
    return model.to(dtype).eval()


def images(n: int = 40, size: int = 10, channels: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def refitted(model: nn.Module, data: list[torch.Tensor], **options) -> lc.CollapseResult:
    return lc.collapse(model, data[0][:2], data=data, mode="refit", **{"cost": "macs", **options})


def test_a_region_that_is_one_convolution_is_recovered() -> None:
    model, x = nearly_one(), images()
    result = refitted(model, [x], min_r2=0.999)
    (one,) = result.refitted
    assert one.layers == ("2", "3")
    assert (one.by, one.sites) == ("one 3x3 convolution", ())
    assert one.r2 == pytest.approx(1.0, abs=1e-9)
    assert (one.before, one.after) == (100 * 9 * 48, 100 * 9 * 16)
    assert (one.ms_before, one.ms_after) == (None, None)
    assert [tuple(layer.weight.shape) for layer in result.model.modules() if isinstance(layer, nn.Conv2d)] == [
        (4, 1, 3, 3),
        (4, 4, 3, 3),
        (2, 4, 1, 1),
    ]
    assert (result.before.depth, result.after.depth) == (4, 3)
    for other in (x, images(3, 7)):  # also of another size, and the border is right
        torch.testing.assert_close(result.model(other), model(other), rtol=1e-6, atol=1e-6)
    assert 0 < result.max_abs_error < 1e-6
    text = result.explain()
    assert "2 … 3 (2 layers): one 3x3 convolution, R² 1.000; 43,200 → 14,400 multiply-accumulates" in text
    assert f"the outputs differ by {result.max_abs_error:.3g}); train the model once more" in text


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float64, 1e-6)])
def test_it_is_fitted_in_float64_and_emitted_in_the_models_dtype(dtype: torch.dtype, error: float) -> None:
    model, x = nearly_one(dtype), images(dtype=dtype)
    result = refitted(model, [x], min_r2=0.99, tolerance=0.1)
    assert [one.by for one in result.refitted] == ["one 3x3 convolution"]
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.max_abs_error < error


def blocks(width: int = 6) -> Model:
    """Two residual blocks behind a rectifier, the first of stride 2: all four rectifiers inside may go."""
    torch.manual_seed(0)

    def block(self, x, name, stride):
        made = self.get_submodule(f"{name}b")(self.get_submodule(f"{name}r")(self.get_submodule(f"{name}a")(x)))
        return self.get_submodule(f"{name}n")(made) + (self.short(x) if stride == 2 else x)

    def forward(self, x):
        x = self.stem_relu(self.stem(x))
        x = self.mid(block(self, x, "p", 2))
        x = self.last(block(self, x, "q", 1))
        return self.fc(x.mean((2, 3)))

    layers = {"stem": conv(2, width), "short": conv(width, 2 * width, 1, 2), "fc": nn.Linear(2 * width, 3)}
    layers |= {"pa": conv(width, 2 * width, 3, 2), "pb": conv(2 * width, 2 * width), "pn": nn.BatchNorm2d(2 * width)}
    layers |= {"qa": conv(2 * width, 2 * width), "qb": conv(2 * width, 2 * width), "qn": nn.BatchNorm2d(2 * width)}
    layers |= {name: nn.ReLU() for name in ("stem_relu", "pr", "mid", "qr", "last")}
    model = Model(forward, **layers)
    with torch.no_grad():  # the second layer of a block adds little to what the first one reads
        for name in ("pb", "qb"):
            middle = model.get_submodule(name).weight[:, :, 1, 1].clone()
            model.get_submodule(name).weight.mul_(0.2)
            model.get_submodule(name).weight[:, :, 1, 1] = middle
        for name in ("pn", "qn"):
            model.get_submodule(name).running_mean.normal_(0, 0.3)
            model.get_submodule(name).running_var.uniform_(0.05, 0.2)
    return model.eval()


def linear(model: nn.Module, x: torch.Tensor, *keep: str) -> None:
    sites = [site.name for site in lc.capture(model, x).sites]
    lc.linearize(model, {name: "identity" for name in sites if name not in keep}, x)


def test_blocks_whose_rectifiers_have_gone_become_one_convolution_of_their_stride() -> None:
    model, x = blocks(), images(200, 8, 2, torch.float32)
    linear(model, x[:2], "stem_relu", "last")
    data = list(x.split(40))
    result = refitted(model, data, min_r2=0.8)
    (one,) = result.refitted
    assert one.layers == ("pa", "pb", "short", "qa", "qb")
    assert one.sites == ("pr", "mid", "qr")
    assert one.by == "one 5x5 convolution of stride 2"
    assert 0.8 <= one.r2 < 1
    assert one.after < one.before / 2
    guarantees = {site.name: (site.status, site.guarantee) for site in result.sites}
    assert guarantees == {
        "stem_relu": ("kept", ""),
        **dict.fromkeys(("pr", "mid", "qr"), ("collapsed", "refitted")),
        "last": ("kept", ""),
    }
    # R² is of samples held out: the error of others, which nobody has seen, is what it says.
    held = {}
    model.last.register_forward_pre_hook(lambda _, args: held.__setitem__("model", args[0]))
    new = images(400, 8, 2, torch.float32).flip(3)
    with torch.no_grad():
        model(new)
        emitted = [m for m in result.model.modules() if isinstance(m, nn.ReLU)][-1]
        emitted.register_forward_pre_hook(lambda _, args: held.__setitem__("fitted", args[0]))
        result.model(new)
    y = held["model"].movedim(1, -1).flatten(0, -2)
    errors = (held["fitted"].movedim(1, -1).flatten(0, -2) - y).square().sum()
    assert float(1 - errors / (y - y.mean(0)).square().sum()) == pytest.approx(one.r2, abs=0.03)
    assert result.max_abs_error == pytest.approx(
        max(float((result.model(b) - model(b)).detach().abs().max()) for b in data), rel=1e-4
    )
    assert result.max_abs_error > 1e-3  # far above the tolerance, which judges the exact collapse


def test_the_same_data_give_the_same_layers_and_leave_random_numbers_alone() -> None:
    x = images(200, 8, 2, torch.float32)
    made = []
    for seed in (1, 2):
        model = blocks()
        linear(model, x[:2], "stem_relu", "last")
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        made.append(refitted(model, list(x.split(40)), min_r2=0.8).model)
        assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_is_a_plain_model_saved_loaded_and_trained(tmp_path) -> None:
    model, x = blocks(), images(200, 8, 2, torch.float32)
    linear(model, x[:2], "stem_relu", "last")
    result = refitted(model, list(x.split(40)), min_r2=0.8)
    result.save(tmp_path)
    torch.testing.assert_close(lc.load(tmp_path)(x), result.model(x))
    target = model(x).detach()
    collapsed = result.model.train()
    optimizer = torch.optim.Adam(collapsed.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = (collapsed(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_fit_below_the_threshold_is_not_taken_and_said() -> None:
    model, x = blocks(), images(200, 8, 2, torch.float32)
    linear(model, x[:2], "stem_relu", "last")
    result = refitted(model, list(x.split(40)), min_r2=1.0)
    assert result.refitted == ()
    assert result.max_abs_error < 1e-4
    assert {site.guarantee for site in result.sites if site.status == "collapsed"} == {"exact"}
    reason = result.kept["pa → qb"]
    assert "not refitted: one 5x5 convolution of stride 2" in reason
    assert "of its variance (R²), less than 1" in reason


def test_too_few_samples_are_refused() -> None:
    model, x = nearly_one(), images(3, 4)  # 48 positions for 36 unknowns
    result = refitted(model, [x[:2], x[2:]])
    assert result.refitted == ()
    reason = "not refitted: the 4 unknowns for each output of one 1x1 convolution of rank 1 need 16 positions"
    assert result.kept["2 → 3"].startswith(reason)
    assert result.kept["2 → 3"].endswith("there are 48 and 0")  # nothing to try it on
    one = refitted(model, [images(1, 4)] * 5)  # enough samples, in batches of one: every fifth is held out
    assert "(R²), less than 0.8; the 36 unknowns for each output of one 3x3 conv" in one.kept["2 → 3"]
    assert "need 144 positions" in one.kept["2 → 3"]
    assert one.kept["2 → 3"].endswith("there are 64 and 16")


def test_dead_channels_and_constant_inputs_have_no_weights() -> None:
    model, x = nearly_one(), images()
    with torch.no_grad():
        model[0].bias[1], model[0].weight[1] = -1.0, 0.0  # off: zero, also where the next layer pads
        model[3].weight[2], model[3].bias[2] = 0.0, 0.5
    result = refitted(model, [x], min_r2=0.999)
    (one,) = result.refitted
    assert one.r2 == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-6, atol=1e-6)
    sizes = [tuple(layer.weight.shape) for layer in result.model.modules() if isinstance(layer, nn.Conv2d)]
    assert sizes == [(3, 1, 3, 3), (3, 3, 3, 3), (2, 3, 1, 1)]


def test_an_input_that_never_varies_is_a_constant() -> None:
    model = nearly_one()
    x = torch.zeros(40, 1, 10, 10).double()
    with torch.no_grad():
        model[0].bias.fill_(0.3)
    result = refitted(model, [x], min_r2=0.999)
    assert [one.by for one in result.refitted] == ["one 3x3 convolution"]
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-6, atol=1e-6)


def test_depthwise_layers_and_bias_at_the_border() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        conv(1, 8), nn.ReLU(), conv(8, 8, groups=8), conv(8, 16, 1), conv(16, 8, groups=8), nn.ReLU(), conv(8, 2, 1)
    )
    with torch.no_grad():
        model[4].weight.mul_(1e-9)
        model[4].weight[:, :, 1, 1] = 1.0
        model[3].bias += 3.0
    model, x = model.double().eval(), images(60)
    result = refitted(model, [x])
    exact = lc.collapse(model, x[:2], data=[x], cost="macs")
    assert result.after.macs <= exact.after.macs
    for one in result.refitted:
        assert one.after < one.before
        assert one.r2 >= 0.7


def test_tokens() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 6), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[3].weight[:, 3:] *= 1e-4  # of rank 3, nearly
    x = torch.randn(50, 7, 16)
    result = refitted(model, [x], min_r2=0.99)
    assert [one.by for one in result.refitted] == ["one linear layer of rank 4"]
    assert [
        (layer.in_features, layer.out_features) for layer in result.model.modules() if hasattr(layer, "in_features")
    ] == [
        (16, 16),
        (16, 4),
        (4, 16),
        (16, 3),
    ]
    assert result.max_abs_error < 1e-3


def test_a_region_that_reads_two_tensors() -> None:
    torch.manual_seed(0)

    def forward(self, x):
        a, b = torch.relu(self.a(x)), torch.tanh(x)
        return torch.relu(self.d(self.c(a)) + self.f(self.e(b))).mean((2, 3))

    model = Model(forward, a=conv(2, 4), c=conv(4, 8), d=conv(8, 4), e=conv(2, 8), f=conv(8, 4)).double()
    with torch.no_grad():
        for layer in (model.d, model.f):
            middle = layer.weight[:, :, 1, 1].clone()
            layer.weight.mul_(1e-9)
            layer.weight[:, :, 1, 1] = middle
    x = images(60, 8, 2)
    result = refitted(model, [x], min_r2=0.999)
    (one,) = result.refitted
    assert one.by == "2 3x3 convolutions"
    assert one.r2 == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dims", "kernel"), [(1, "kernel-3"), (3, "3x3x3")])
def test_other_dimensions_and_inputs_of_other_sizes(dims: int, kernel: str) -> None:
    torch.manual_seed(0)
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = nn.Sequential(layer(1, 4, 3, padding=1), nn.ReLU(), layer(4, 6, 3, 2, 1), layer(6, 4, 3, 1, 1), nn.ReLU())
    with torch.no_grad():
        middle = model[3].weight[(..., *(1,) * dims)].clone()
        model[3].weight.mul_(1e-9)
        model[3].weight[(..., *(1,) * dims)] = middle
    model, x = model.double(), torch.randn(60, 1, *(6,) * dims).double()
    result = refitted(model, [x], min_r2=0.999)
    assert [one.by for one in result.refitted] == [f"one {kernel} convolution of stride 2"]
    for size in (6, 7, 9):
        other = torch.randn(2, 1, *(size,) * dims).double()
        torch.testing.assert_close(result.model(other), model(other), rtol=1e-6, atol=1e-6)


class Named(nn.Module):
    """A model whose input has a name."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


@pytest.mark.parametrize("kind", ["tensor", "tuples", "iterator", "loader", "dicts"])
def test_data_come_as_they_do_for_other_modes(kind: str) -> None:
    model, x = nearly_one(), images()
    if kind == "dicts":
        model = Named(model)
    data = {
        "tensor": x,
        "tuples": [(x, torch.zeros(40))],
        "iterator": iter([x[:30], x[30:]]),
        "loader": torch.utils.data.DataLoader(x, batch_size=8),
        "dicts": [{"image": x, "label": torch.zeros(40)}],
    }[kind]
    example = {"image": x[:2]} if kind == "dicts" else x[:2]
    result = lc.collapse(model, example, data=data, mode="refit", cost="macs", min_r2=0.99)
    assert [one.by for one in result.refitted] == ["one 3x3 convolution"]


def test_a_tensor_that_is_an_output_too_ends_a_region() -> None:
    torch.manual_seed(0)

    def forward(self, x):
        between = self.b(torch.relu(self.a(x)))
        return self.d(self.c(between)), between

    model, x = Model(forward, a=conv(1, 4), b=conv(4, 4), c=conv(4, 6), d=conv(6, 2)).double(), images(60)
    result = refitted(model, [x], min_r2=0.01)
    assert [one.layers for one in result.refitted] == [("c", "d")]
    torch.testing.assert_close(result.model(x)[1], model(x)[1])


def test_frozen_layers_stay_frozen_and_data_that_are_not_finite_fit_nothing() -> None:
    model, x = nearly_one().requires_grad_(False), images()
    result = refitted(model, [x], min_r2=0.99)
    assert len(result.refitted) == 1
    assert not any(parameter.requires_grad for parameter in result.model.parameters())
    x[0, 0, 0, 0] = torch.nan
    assert refitted(model, [x]).kept["2 → 3"] == "not refitted: the data make values there that are not finite"


def test_regions_are_fitted_in_turn_where_their_sums_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = blocks(), images(200, 8, 2, torch.float32)
    linear(model, x[:2], "stem_relu", "mid", "last")
    together = refitted(model, list(x.split(40)), min_r2=0.5)
    assert len(together.refitted) == 2
    monkeypatch.setattr(refit, "_HELD", 1)
    monkeypatch.setattr(fitting, "_FEATURES", 1000)
    apart = refitted(model, list(x.split(40)), min_r2=0.5)
    assert [one.by for one in apart.refitted] == [one.by for one in together.refitted]
    torch.testing.assert_close(apart.model(x), together.model(x), rtol=1e-4, atol=1e-4)


def test_sites_that_only_data_prove_count_too_and_keep_the_tolerance() -> None:
    model = nearly_one(torch.float32)
    model.insert(3, nn.ReLU())
    with torch.no_grad():
        model[2].bias += 20
        x = images(dtype=torch.float32)
        model[4].bias -= model[:5](x).mean((0, 2, 3))
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(x)
    report = probe.report()
    assert report["3"].collapsible
    result = lc.collapse(model, x[:2], report, data=[x], mode="refit", cost="macs", min_r2=0.99)
    assert [one.sites for one in result.refitted] == [("3",)]
    assert [site.guarantee for site in result.sites] == ["", "refitted", ""]
    assert "no sign changed" in result.sites[1].reason
    kept = lc.collapse(model, x[:2], report, data=[x, 100 * x], mode="refit", cost="macs", min_r2=0.99)
    assert (kept.collapsed, kept.refitted) == ((), ())


class Counted:
    """A cost model without a clock: of networks their parameters."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def networks(self, models, example_inputs, *, seconds, passes):
        return {name: float(sum(p.numel() for p in model.parameters())) for name, model in models.items()}


def test_the_cost_model_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "Latency", Counted)
    model, x = nearly_one(), images()
    result = refitted(model, [x], cost="latency", min_r2=0.999)
    (one,) = result.refitted
    assert (one.ms_before, one.ms_after) == (9 * 48 + 10, 9 * 16 + 4)
    assert "442.000 → 148.000 ms" in result.explain()
    assert result.latency_after == sum(p.numel() for p in result.model.parameters())
    assert result.latency_before == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("more", "by"), [(2.9, "one 5x5 convolution"), (3.1, "one 3x3 convolution")])
def test_of_what_costs_next_to_the_same_the_best_is_taken(
    monkeypatch: pytest.MonkeyPatch, more: float, by: str
) -> None:
    class Near(Counted):
        def networks(self, models, example_inputs, *, seconds, passes):
            found = super().networks(models, example_inputs, seconds=seconds, passes=passes)
            if Variant.INPUT in models or len(models) == 2:
                return found
            # The region costs 100, of which 3 are little; 16 * 9 + 4 weights have a 3x3 kernel, 16 * 25 + 4 a 5x5.
            return {name: {148: 50.0, 404: 50.0 + more}.get(n, 100.0) for name, n in found.items()}

    monkeypatch.setattr(api, "Latency", Near)
    model, x = nearly_one(), images()
    with torch.no_grad():
        model[3].weight.mul_(1 / model[3].weight.abs().amax() / 20)  # next to one 3x3, and nearer to one 5x5
        model[3].weight[:, :, 1, 1] += torch.randn(4, 6).double()
        model[3].weight += 0.02 * torch.randn(4, 6, 3, 3).double()
    result = refitted(model, [x], cost="latency", min_r2=0.8)
    assert [one.by for one in result.refitted] == [by]


def test_a_region_of_which_no_layer_does_is_fitted_in_segments() -> None:
    torch.manual_seed(0)
    halves = [layer for _ in range(2) for layer in (conv(4, 6), conv(6, 4))]
    model = nn.Sequential(conv(1, 4), nn.ReLU(), *halves, nn.ReLU(), conv(4, 2, 1))
    with torch.no_grad():
        for layer in (model[3], model[5]):
            middle = layer.weight[:, :, 1, 1].clone()
            layer.weight.mul_(1e-9)
            layer.weight[:, :, 1, 1] = middle
    model, x = model.double().eval(), images(60)
    result = refitted(model, [x], min_r2=0.999)
    assert [(one.layers, one.by) for one in result.refitted] == [
        (("2", "3"), "one 3x3 convolution"),
        (("4", "5"), "one 3x3 convolution"),
    ]
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-6, atol=1e-6)
    assert not any("not refitted" in why for why in result.kept.values())


def test_segments_are_those_that_save_the_most_and_do_not_overlap() -> None:
    def made(saved: float) -> refit._Made:
        costs = SimpleNamespace(cost=10.0), SimpleNamespace(cost=10.0 - saved)
        return refit._Made(*costs, r2=1.0, replacement=None)  # type: ignore[arg-type]

    tables: list[tuple[dict[tuple[int, int], float], list[tuple[int, int]]]] = [
        ({}, []),
        ({(0, 1): 1, (1, 2): 1, (0, 2): 3}, [(0, 2)]),
        ({(0, 1): 2, (1, 2): 2, (0, 2): 3}, [(0, 1), (1, 2)]),
        ({(0, 2): 3, (1, 3): 5, (2, 4): 3}, [(0, 2), (2, 4)]),
        ({(0, 2): 3, (1, 3): 7, (2, 4): 3}, [(1, 3)]),
        ({(2, 5): 1, (0, 1): 1}, [(0, 1), (2, 5)]),
    ]
    for table, expected in tables:
        some = {place: made(saved) for place, saved in table.items()}
        assert refit._best(some) == [some[place] for place in expected]


def test_a_network_that_is_no_faster_as_a_whole_is_the_exact_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Counted):
        def networks(self, models, example_inputs, *, seconds, passes):
            whole = set(models) == {True, False}  # the network with fitted layers, and without
            return dict.fromkeys(models, 1.0) if whole else super().networks(models, None, seconds=0, passes=0)

    monkeypatch.setattr(api, "Latency", Slow)
    model, x = nearly_one(), images()
    result = refitted(model, [x], cost="latency", min_r2=0.999)
    assert result.refitted == ()
    assert result.max_abs_error < 1e-9
    assert result.kept["2 → 3"] == "not refitted: the network as a whole was no faster with fitted layers"


def test_other_modes_fit_nothing() -> None:
    model, x = nearly_one(), images()
    for mode in ("exact", "repad"):
        assert lc.collapse(model, x[:2], data=[x], cost="macs", mode=mode).refitted == ()


def test_the_model_and_its_mode_are_as_they_were() -> None:
    model, x = blocks(), images(200, 8, 2, torch.float32)
    linear(model, x[:2], "stem_relu", "last")
    model.train()
    before = copy.deepcopy(model.state_dict())
    refitted(model, list(x.split(40)), min_r2=0.8)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
