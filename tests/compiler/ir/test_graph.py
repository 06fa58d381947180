"""Rewrites of a net: nodes and records come and go together."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from layercollapse.compiler.ir.graph import Net, alike, operands, shared, sole_user, source, tied
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine
from networks import Model, lowered


def chain() -> Net:
    return lowered(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4))


def nodes(net: Net) -> list[str]:
    return [str(node.target) for node in net.graph.nodes if node.op not in ("placeholder", "output")]


def at(net: Net, name: str) -> fx.Node:
    return next(node for node in net.graph.nodes if str(node.target) == name)


def doubling(channels: int) -> ChannelAffine:
    return ChannelAffine(torch.full((channels,), 2.0).double(), torch.zeros(channels).double(), -1, torch.float32)


def test_a_record_is_inserted_under_a_free_name() -> None:
    net = chain()
    first = at(net, "0")
    for name in ("0_2", "0_3"):
        new = net.insert("0", doubling(3), first, after=first)
        assert new.target == name
        assert new.meta["shape"] == (5, 3)
    net.reroute(first, new)
    assert nodes(net) == ["0", "0_3", "0_2", "1", "2"]
    assert source(at(net, "1")) is new
    assert source(new) is first
    assert sole_user(first) is new
    assert sole_user(new) is None  # "0_2" reads it too now
    assert net.sweep()
    assert nodes(net) == ["0", "0_3", "1", "2"]
    assert set(net.ops) == {"0", "0_3", "1", "2"}
    assert not net.sweep()


def test_one_takes_the_place_of_another() -> None:
    net = chain()
    net.replace(at(net, "1"), at(net, "0"))
    assert nodes(net) == ["0", "2"]
    assert set(net.ops) == {"0", "2"}
    assert [node.target for node, _ in net.records(Affine)] == ["0", "2"]
    assert list(net.records(Activation)) == []
    assert net.affine(at(net, "0")) is net.op(at(net, "0"))
    assert net.op(None) is None


def test_a_copy_shares_the_records_and_nothing_else() -> None:
    net = chain()
    copied = net.copy()
    assert copied.ops["0"] is net.ops["0"]
    copied.replace(at(copied, "1"), at(copied, "0"))
    copied.set(at(copied, "2"), doubling(3))
    copied.frozen.add("x")
    assert nodes(net) == ["0", "1", "2"]
    assert isinstance(net.ops["2"], Affine)
    assert net.frozen == set()


def test_tensors_that_nothing_reads_go_with_the_sweep() -> None:
    class Plus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Parameter(torch.randn(3, 3))

        def forward(self, x):
            return torch.softmax(x, -1) * (self.more @ self.more).sin()

    net = lowered(Plus(), torch.randn(3, 3))
    assert list(net.tensors) == ["more"]
    output = next(node for node in net.graph.nodes if node.op == "output")
    output.args = (next(iter(net.graph.nodes)),)
    net.sweep()
    assert net.tensors == {}


def test_weights_that_are_used_twice() -> None:
    layer, table = nn.Linear(4, 4), nn.Embedding(9, 4)
    head = nn.Linear(4, 9, bias=False)
    head.weight = table.weight
    model = Model(lambda m, x: m.head(m.layer(m.layer(m.table(x)).relu())), layer=layer, table=table, head=head)
    net = lowered(model, torch.randint(9, (5,)))
    assert net.calls() == {"layer.weight": 2, "head.weight": 1}
    ops = {str(node.target): op for node, op in net.records(Affine)}
    assert {name: (tied(net, op), shared(net, op)) for name, op in ops.items()} == {
        name: (name == "head", True) for name in ops
    }
    once = chain()
    assert not any(shared(once, op) for _, op in once.records(Affine))


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: x.sin() + x.cos(), True),
        (lambda x: x.sin() - x.cos(), False),
        (lambda x: torch.add(x.sin(), x.cos(), alpha=2), False),
        (lambda x: x.sin() + x.cos().mean(1, keepdim=True), False),  # of another shape
        (lambda x: x.sin() + (x > 0), False),  # of another dtype
        (lambda x: x.sin() + 1, False),
    ],
)
def test_sums_of_two_tensors(function, found: bool) -> None:
    net = lowered(Model(lambda m, x: function(x)), torch.randn(2, 3, 4))
    (output,) = (node for node in net.graph.nodes if node.op == "output")
    pair = operands(output.all_input_nodes[0])
    assert (pair is not None) == found
    if pair is not None:
        assert [node.target.overloadpacket.__name__ for node in pair] == ["sin", "cos"]


def test_one_pixel_in_the_example_may_be_many() -> None:
    def pair(second) -> bool:
        net = lowered(Model(lambda m, x: (x.sin(), second(x))), torch.randn(2, 3, 1, 1))
        (output,) = (node for node in net.graph.nodes if node.op == "output")
        return alike(*output.all_input_nodes)

    assert pair(lambda x: x.cos())
    assert not pair(lambda x: nn.functional.adaptive_avg_pool2d(x, 1))
    assert not pair(lambda x: x.amax((2, 3), keepdim=True).cos())
