"""Which parts of a net are linear regions, what their windows are, and what takes their place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.ir.records import Affine, ConvGeometry
from layercollapse.compiler.passes.refit import LinearRegion, Replacement, linear_regions, narrower, rewritten, segments
from networks import Model, lowered


def named(net: Net, region: LinearRegion) -> list[str]:
    return [str(node.target) for node, _ in region.layers(net)]


def window(kernel: int, stride: int, padding: int) -> ConvGeometry:
    return ConvGeometry((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1))


def conv(kernel: int, stride: int = 1, padding: int = 0, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, stride, padding, groups=groups, dilation=dilation)


def test_a_rectifier_ends_a_region_and_a_single_layer_is_none() -> None:
    model = nn.Sequential(conv(3), conv(1), nn.BatchNorm2d(4), nn.ReLU(), conv(3), nn.ReLU(), conv(3), conv(3))
    net = lowered(model, torch.randn(2, 4, 12, 12))
    assert [named(net, region) for region in linear_regions(net)] == [["0", "1"], ["6", "7"]]
    first, second = linear_regions(net)
    assert [str(node.target) for node in first.nodes] == ["0", "1", "2"]  # the batch norm as well
    assert list(first.windows.values()) == [window(3, 1, 0)]
    assert list(second.windows.values()) == [window(5, 1, 0)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([conv(3, 2, 1), conv(3, 1, 1)], window(7, 2, 3)),
        ([conv(3, 1, 1), conv(1, 2), conv(3, 2, 1)], window(7, 4, 3)),
        ([conv(3, 1, 2, dilation=2), conv(3, 1, 1, groups=4)], window(7, 1, 3)),
        ([conv(3, 1, 1), nn.AvgPool2d(2), conv(1)], window(4, 2, 1)),
        ([conv(1), conv(3), conv(3)], window(5, 1, 0)),
    ],
)
def test_the_window_is_what_a_composed_kernel_reads(layers: list[nn.Module], expected: ConvGeometry) -> None:
    model = nn.Sequential(*layers)
    net = lowered(model, torch.randn(1, 4, 24, 24))
    (region,) = linear_regions(net)
    assert list(region.windows.values()) == [expected]
    for size in (
        24,
        25,
        27,
        30,
    ):  # and the sizes of its outputs are those of a layer with that window, and narrower ones
        x = torch.randn(1, 4, size, size)
        for some in (region.windows, *narrower(region.windows)):
            (one,) = some.values()
            layer = nn.Conv2d(4, 4, one.kernel, one.stride, one.padding)
            assert layer(x).shape == model(x).shape


def residual(**layers: nn.Module) -> Model:
    def forward(self, x):
        x = torch.relu(self.stem(x))
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))

    return Model(forward, stem=conv(1), **layers)


def test_paths_that_meet_have_the_larger_window() -> None:
    model = residual(first=conv(3, 2, 1), second=conv(3, 1, 1), shortcut=conv(1, 2))
    net = lowered(model, torch.randn(1, 4, 8, 8))
    (region,) = linear_regions(net)
    assert sorted(named(net, region)) == ["first", "second", "shortcut"]
    assert list(region.windows.values()) == [window(7, 2, 3)]
    assert [next(iter(some.values())) for some in narrower(region.windows)] == [
        window(1, 2, 0),
        window(3, 2, 1),
        window(5, 2, 2),
    ]


def test_paths_with_outputs_of_other_sizes_for_some_inputs_have_no_window() -> None:
    # Both halve even sizes, but of 9 pixels one path makes 5 and the other 4.
    model = residual(first=conv(3, 2, 1), second=conv(3, 1, 1), shortcut=nn.Sequential(nn.AvgPool2d(2), conv(1)))
    net = lowered(model, torch.randn(1, 4, 8, 8))
    (region,) = linear_regions(net)
    assert region.windows is None


def test_a_region_may_read_several_tensors_and_what_others_read_is_one_of_them() -> None:
    def forward(self, x):
        a = torch.relu(self.a(x))
        b = self.b(torch.tanh(x))
        return torch.relu(self.d(self.c(a)) + b) + torch.sigmoid(b)

    model = Model(forward, a=conv(1), b=conv(3, 1, 1), c=conv(3, 1, 1), d=conv(1))
    net = lowered(model, torch.randn(1, 4, 8, 8))
    (region,) = linear_regions(net)
    assert named(net, region) == ["c", "d"]  # b is read by the sigmoid, too
    assert {node.name.partition("_")[0]: size for node, size in region.windows.items()} == {
        "relu": window(3, 1, 1),
        "b": window(1, 1, 0),
    }


def test_attention_and_products_of_data_are_no_part_of_a_region() -> None:
    def forward(self, x):
        q, k = self.b(self.a(x)), self.c(x)
        return self.e(self.d(torch.softmax(q @ k.transpose(1, 2), -1) @ x)) * torch.sigmoid(x)

    layers = {name: nn.Linear(6, 6) for name in "abcde"}
    net = lowered(Model(forward, **layers), torch.randn(2, 5, 6))
    assert [named(net, region) for region in linear_regions(net)] == [["a", "b"], ["d", "e"]]
    assert all(list(region.windows.values()) == [ConvGeometry()] for region in linear_regions(net))


def test_a_learned_tensor_is_not_read_as_data() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(1, 5, 6))
            self.layers = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))

        def forward(self, x):
            return self.layers(self.layers(x) + self.position)

    net = lowered(Positions(), torch.randn(1, 5, 6))
    assert [len(region.windows) for region in linear_regions(net)] == [1, 1]


def test_transposed_convolutions_and_layers_of_other_dimensions_end_a_region() -> None:
    model = nn.Sequential(
        conv(3), conv(3), nn.ConvTranspose2d(4, 4, 2, 2), conv(3), nn.Flatten(2), nn.Linear(16, 8), nn.Linear(8, 4)
    )
    net = lowered(model, torch.randn(2, 4, 7, 7))
    assert [named(net, region) for region in linear_regions(net)] == [["0", "1"], ["5", "6"]]


def test_no_window_leaves_out_positions_at_the_border() -> None:
    assert [next(iter(some.values())) for some in narrower({None: window(5, 1, 0)})] == [window(5, 1, 0)]  # type: ignore[dict-item]
    assert [next(iter(some.values())) for some in narrower({None: window(9, 1, 1)})] == []  # type: ignore[dict-item]
    assert [next(iter(some.values())).kernel for some in narrower({None: window(4, 2, 1)})] == [(2, 2), (4, 4)]  # type: ignore[dict-item]
    assert list(narrower({None: ConvGeometry()})) == [{None: ConvGeometry()}]  # type: ignore[dict-item]


@pytest.mark.parametrize("rank", [None, 2])
def test_what_takes_the_place_of_a_region_has_its_name_and_its_readers(rank: int | None) -> None:
    torch.manual_seed(0)
    model = residual(first=conv(3, 2, 1), second=conv(3, 1, 1), shortcut=conv(1, 2))
    x = torch.randn(2, 4, 9, 9)
    net = lowered(model, x)
    (region,) = linear_regions(net)
    (read,) = region.windows
    weight, bias = torch.randn(rank or 4, 4, 3, 3).double(), torch.randn(rank or 4).double()
    op = Affine(weight, bias, window(3, 2, 1), 1, torch.float32)
    last, expected = None, torch.relu(model.stem(x))
    expected = F.conv2d(expected, weight.float(), bias.float(), 2, 1)
    if rank:
        up = torch.randn(4, rank, 1, 1).double()
        last = Affine(up, torch.zeros(4).double(), window(1, 1, 0), 1, torch.float32)
        expected = F.conv2d(expected, up.float())
    before = str(net.graph)
    made = emit(rewritten(net, [Replacement(region, [(read, op)], last)]))
    torch.testing.assert_close(made(x), torch.relu(expected))
    assert {name for name, _ in made.named_parameters()} == {
        "stem.weight",
        "stem.bias",
        *({"shortcut.weight", "shortcut_2.weight", "shortcut.bias"} if rank else {"shortcut.weight", "shortcut.bias"}),
    }
    assert str(net.graph) == before


def test_two_layers_on_two_tensors_add_up_and_a_region_may_read_another() -> None:
    torch.manual_seed(0)

    def forward(self, x):
        t = self.b(self.a(x))
        return self.d(self.c(torch.relu(t))) + t

    model = Model(forward, **{name: nn.Linear(6, 6) for name in "abcd"})
    x = torch.randn(5, 6)
    net = lowered(model, x)
    first, second = linear_regions(net)
    layers = [nn.Linear(6, 6) for _ in range(3)]
    ops = [Affine(n.weight.data.double(), n.bias.data.double(), ConvGeometry(), 1, torch.float32) for n in layers]
    relu, t = sorted(second.windows, key=lambda node: node is first.root)
    assert t is first.root
    made = emit(
        rewritten(
            net, [Replacement(first, [(*first.windows, ops[0])]), Replacement(second, [(relu, ops[1]), (t, ops[2])])]
        )
    )
    t = layers[0](x)
    torch.testing.assert_close(made(x), layers[1](torch.relu(t)) + layers[2](t))


def test_segments_lie_between_tensors_that_all_paths_go_through() -> None:
    def forward(self, x):
        x = torch.relu(x)
        x = self.norm(self.b(self.a(x)) + x)
        x = self.d(self.c(x)) + self.short(x)
        return torch.relu(self.e(x))

    layers = {name: conv(3, 1, 1) for name in "abcde"} | {"short": conv(1), "norm": nn.BatchNorm2d(4)}
    net = lowered(Model(forward, **layers), torch.randn(1, 4, 8, 8))
    (region,) = linear_regions(net)
    found = segments(net, region)
    assert {place: sorted(named(net, part)) for place, part in found.items()} == {
        (0, 1): ["a", "b"],
        (0, 2): ["a", "b", "c", "d", "short"],
        (1, 2): ["c", "d", "short"],
        (1, 3): ["c", "d", "e", "short"],
    }
    assert str(found[0, 1].root.target) == "norm"  # what is behind the last layer is a part of its segment
    assert [list(part.windows.values()) for part in found.values()] == [
        [window(5, 1, 2)],
        [window(9, 1, 4)],
        [window(5, 1, 2)],
        [window(7, 1, 3)],
    ]
    assert [node.name for node in found[1, 2].windows] == [found[0, 1].root.name]


def test_what_reads_two_tensors_has_no_segment_across() -> None:
    def forward(self, x):
        a, b = torch.relu(x), torch.tanh(x)
        return torch.relu(self.d(self.c(self.b(self.a(a)) + b)))

    net = lowered(Model(forward, **{name: conv(1) for name in "abcd"}), torch.randn(1, 4, 8, 8))
    (region,) = linear_regions(net)
    found = segments(net, region)
    assert {place: named(net, part) for place, part in found.items()} == {
        (0, 1): ["a", "b"],
        (0, 2): ["a", "b", "c"],
        (1, 3): ["c", "d"],
    }
    assert [len(part.windows) for part in found.values()] == [2, 2, 1]  # the sum of both ends the first
