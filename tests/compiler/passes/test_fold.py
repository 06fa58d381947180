"""Each pass that moves constants and scales by itself: what it takes, what it leaves, and the same outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.ir.records import Affine, ChannelAffine, ConstantMap
from layercollapse.compiler.passes import fold
from layercollapse.compiler.passes.context import PassContext
from networks import Model, lowered


def norm(channels: int, kind: type[nn.Module] = nn.BatchNorm2d, sign: float = 1.0) -> nn.Module:
    layer = kind(channels)
    nn.init.uniform_(layer.running_mean, -1, 1)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    layer.weight.data.uniform_(0.5, 2).mul_(sign)
    nn.init.uniform_(layer.bias, -1, 1)
    return layer


def applied(
    run: Callable[[Net, PassContext], bool], model: nn.Module, *size: int, tolerance: float = 1e-12
) -> list[type] | None:
    """The records that are left after one pass, in order; None if it did nothing. The outputs are the same."""
    torch.manual_seed(1)
    model, x = model.double().eval(), torch.randn(size).double()
    net = lowered(model, x)
    changed = run(net, PassContext())
    net.sweep()
    torch.testing.assert_close(emit(net.copy())(x), model(x), rtol=0, atol=tolerance)
    return [type(net.op(node)) for node in net.graph.nodes if net.op(node) is not None] if changed else None


def conv(inputs: int = 2, outputs: int = 2, **settings: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, **settings)


def test_a_scale_of_one_goes() -> None:
    one = nn.BatchNorm2d(2, eps=0.0)
    assert applied(fold.drop_identities, nn.Sequential(conv(), one, nn.ReLU()), 1, 2, 6, 6)[0] is Affine
    one.weight.data[0] = 2.0
    assert applied(fold.drop_identities, nn.Sequential(conv(), one), 1, 2, 6, 6) is None


def test_a_scale_joins_the_layer_that_it_alone_reads() -> None:
    assert applied(fold.fold_scales_up, nn.Sequential(conv(padding=1), norm(2)), 1, 2, 6, 6) == [Affine]
    read = Model(lambda m, x: m.b(y := m.a(x)) + torch.tanh(y), a=conv(), b=norm(2))
    assert applied(fold.fold_scales_up, read, 1, 2, 6, 6) is None


@pytest.mark.parametrize("padding", [0, 1])
def test_a_scale_joins_the_layers_that_read_it_but_no_padding(padding: int) -> None:
    model = nn.Sequential(nn.ReLU(), norm(2), conv(padding=padding))
    left = applied(fold.fold_scales_down, model, 1, 2, 6, 6)
    assert (left is None) == (padding == 1)
    model[1].running_mean.zero_()
    model[1].bias.data.zero_()  # a scale without a shift
    assert applied(fold.fold_scales_down, model, 1, 2, 6, 6)[-1] is Affine


def test_a_scale_is_not_split_among_layers_and_others() -> None:
    both = Model(lambda m, x: (m.a(y := m.n(x.relu())), m.b(y)), n=norm(2), a=conv(), b=conv())
    assert ChannelAffine not in applied(fold.fold_scales_down, both, 1, 2, 6, 6)
    other = Model(lambda m, x: (m.a(y := m.n(x.relu())), y.tanh()), n=norm(2), a=conv())
    assert applied(fold.fold_scales_down, other, 1, 2, 6, 6) is None


@pytest.mark.parametrize(
    ("pool", "sign", "sinks"),
    [
        (lambda x: F.max_pool2d(x, 2), 1.0, True),
        (lambda x: F.max_pool2d(x, 2), -1.0, False),  # a maximum of negated values is another
        (lambda x: F.avg_pool2d(x, 2), -1.0, True),
        (lambda x: x.mean((2, 3)), -1.0, True),
        (lambda x: F.avg_pool2d(x, 2, padding=1), 1.0, False),  # the border is pooled with zeros
        (lambda x: x.tanh(), 1.0, False),
    ],
)
def test_a_scale_sinks_below_a_pooling(pool, sign: float, sinks: bool) -> None:
    model = Model(lambda m, x: pool(m.n(x.relu())), n=norm(2, sign=sign))
    assert (applied(fold.sink_scales, model, 1, 2, 6, 6) is not None) == sinks


def test_a_scale_behind_a_sum_joins_all_that_are_added_and_a_shift_one() -> None:
    total = Model(lambda m, x: m.n(m.a(x) + m.b(x)), a=conv(), b=conv(), n=norm(2))
    assert applied(fold.lift_through_sums, total, 1, 2, 6, 6) == [Affine, Affine]
    skip = Model(lambda m, x: m.n(m.a(x) + x), a=conv(padding=1), n=norm(2))
    assert applied(fold.lift_through_sums, skip, 1, 2, 6, 6) is None
    skip.n.running_var.fill_(1.0)
    skip.n.eps = 0.0
    skip.n.weight.data.fill_(1.0)  # shifts alone
    assert applied(fold.lift_through_sums, skip, 1, 2, 6, 6) == [Affine]


def constant_channels(values: list[float], behind: nn.Module) -> nn.Module:
    """Channels that hold one value, whatever the input, and one or more that vary, before a layer."""
    first = nn.Conv2d(2, len(values) + 1, 1)
    first.weight.data[: len(values)] = 0
    first.bias.data[: len(values)] = torch.tensor(values)
    return nn.Sequential(first, behind)


@pytest.mark.parametrize(
    ("behind", "reads"),
    [
        (nn.Conv2d(3, 2, 3), [False, False, True]),  # both go into the bias
        (nn.Conv2d(3, 2, 3, padding=1), [False, True, True]),  # the larger carries both at the border
        (nn.Conv2d(3, 3, 3, groups=3), [False, False, True]),
    ],
)
def test_constants_go_into_the_bias_or_into_one_of_them(behind: nn.Module, reads: list[bool]) -> None:
    torch.manual_seed(0)
    model, x = constant_channels([1.0, -4.0], behind).double(), torch.randn(1, 2, 6, 6).double()
    net = lowered(model, x)
    assert fold.fold_constants(net, PassContext())
    assert net.ops["1"].reads().tolist() == reads
    torch.testing.assert_close(emit(net.copy())(x), model(x), rtol=0, atol=1e-12)
    assert not fold.fold_constants(net, PassContext())


def test_grouped_constants_stay_at_a_padding_but_zeros() -> None:
    model = constant_channels([2.0, 0.0], nn.Conv2d(3, 3, 3, padding=1, groups=3))
    net = lowered(model, torch.randn(1, 2, 6, 6))
    assert fold.fold_constants(net, PassContext())
    assert net.ops["1"].reads().tolist() == [True, False, True]


def test_a_layer_without_weights_is_a_constant_map_and_looks_up_for_its_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(), nn.ReLU(), conv(padding=1), nn.ReLU()).double()
    model[2].weight.data.zero_()
    net = lowered(model, torch.randn(1, 2, 8, 8).double())
    assert fold.cut_dead_layers(net, PassContext())
    assert isinstance(net.ops["2"], ConstantMap)
    assert not fold.cut_dead_layers(net, PassContext())
    while fold.raise_references(net, PassContext()):
        net.sweep()
    assert list(net.ops) == ["2", "3"]
    assert [shape.kernel for shape in net.ops["2"].before] == [(3, 3)]
    for size in (8, 11):
        x = torch.randn(3, 2, size, size).double()
        torch.testing.assert_close(emit(net.copy())(x), model(x))
