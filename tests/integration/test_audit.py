"""Certificates against brute force: no input of an exhaustive grid may leave the piece that was proven."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.analysis.bounds.propagate import neuron_states
from layercollapse.compiler.frontend.lower import lower
from layercollapse.entropy.layer import MIXED, OFF, ON, SATURATED

LOW, HIGH = -0.4, 2.8  # the range of MNIST's normalized pixels, roughly
SEEDS = [3, pytest.param(12, marks=pytest.mark.long)]


def everything(inputs: int, points: int) -> Tensor:
    """Every combination of `points` values from LOW to HIGH, both included: float32 (points ** inputs, inputs)."""
    values = torch.linspace(LOW, HIGH, points).tolist()
    return torch.tensor(list(itertools.product(values, repeat=inputs)))


GRIDS = {2: everything(2, 151), 3: everything(3, 33)}


def dense(inputs: int, act: Callable[[], nn.Module]) -> nn.Module:
    layers = (nn.Linear(inputs, 8), nn.BatchNorm1d(8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 3))
    return nn.Sequential(*layers)


def convolutional(inputs: int, act: Callable[[], nn.Module]) -> nn.Module:
    """The inputs are the pixels of a line: every output position has a border on some side."""
    layers = (nn.Conv1d(1, 6, 3, padding=1), nn.BatchNorm1d(6), act(), nn.Conv1d(6, 8, 3, padding=1), act())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * inputs, 3))


def drawn(build: Callable[..., nn.Module], inputs: int, act: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network of a seed: half of its weights pruned, biases that leave some neurons near one end of their range."""
    torch.manual_seed(seed)
    model = build(inputs, act).eval()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            value.data.uniform_(0.3, 2.0)
        elif value.ndim == 1 and value.is_floating_point() and len(value) > 1:
            value.data.add_(torch.randn_like(value))
        elif value.ndim > 1:
            value.data.mul_(torch.rand_like(value) < 0.5)
    return model


def seen(model: nn.Module, grid: Tensor, lower_bend: float, upper: float | None) -> list[tuple[Tensor, ...]]:
    """For every rectifier: the channels that are ever below the lower bend, above it, below and above the upper one."""
    found: list[tuple[Tensor, ...]] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        z = args[0].transpose(0, 1).flatten(1)  # (C, everything else)
        top = torch.inf if upper is None else upper
        found.append(tuple((f.any(1)) for f in (z < lower_bend, z > lower_bend, z < top, z > top)))

    kinds = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU)
    handles = [module.register_forward_pre_hook(look) for module in model.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        model(grid)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("build", [dense, convolutional])
@pytest.mark.parametrize(("act", "upper"), [(nn.ReLU, None), (nn.ReLU6, 6.0), (nn.LeakyReLU, None), (nn.PReLU, None)])
def test_a_proven_neuron_never_leaves_its_piece(
    build: Callable[..., nn.Module], act: Callable[[], nn.Module], upper: float | None, seeds: int
) -> None:
    steady = proven = wrong = collapsed = 0
    for seed in range(seeds):
        inputs = 2 + seed % 2
        model, grid = drawn(build, inputs, act, seed), GRIDS[inputs]
        if build is convolutional:
            grid = grid.unsqueeze(1)  # (N, 1, inputs)
        capture = lc.capture(model, grid[:2])
        states = neuron_states(lower(capture, model), {capture.inputs[0]: (LOW, HIGH)})
        counts = seen(model, grid, 0.0, upper)
        assert len(counts) == len(states) == 2
        for state, (below, above, under_top, over_top) in zip(states.values(), counts, strict=True):
            wrong += int((above & (state == OFF)).sum())
            wrong += int(((below | over_top) & (state == ON)).sum())
            wrong += int((under_top & (state == SATURATED)).sum())
            steady += int((~(below & above) & ~(under_top & over_top)).sum() if upper else (~(below & above)).sum())
            proven += int((state != MIXED).sum())
        if seed % 3:
            continue
        # And what is built on them: the collapsed network is the network, on the whole grid.
        result = lc.collapse(model, grid[:2], None, box=(LOW, HIGH), cost="macs")
        collapsed += sum(site.guarantee == "certified" for site in result.sites)
        with torch.no_grad():
            torch.testing.assert_close(result.model(grid), model(grid), atol=1e-4, rtol=1e-5)
    assert wrong == 0
    # Not vacuous: most of what is steady on the whole grid is proven to be; of few networks, the share is by chance.
    assert proven >= (0.75 if seeds > 3 else 0.5) * steady > 0
    print(f"{build.__name__} {act.__name__}: {proven} of {steady} proven, {collapsed} sites collapsed")


class Transformer(nn.Module):
    """Two tokens of the inputs, and one of the model: embedded, attending to each other, then an MLP."""

    def __init__(self, norm: Callable[[int], nn.Module], norm_first: bool) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(1, 4), nn.Parameter(torch.randn(1, 1, 4))
        self.joined, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.norm1, self.norm2, self.norm_first = norm(4), norm(4), norm_first
        self.first, self.act, self.second = nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 4)
        self.outer, self.head = nn.ReLU(), nn.Linear(4, 2)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 2)).transpose(1, 2) for y in self.joined(x).chunk(3, -1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unsqueeze(-1))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        if self.norm_first:
            x = x + self.attend(self.norm1(x))
            x = x + self.second(self.act(self.first(self.norm2(x))))
        else:
            x = self.norm1(x + self.attend(x))
            x = self.norm2(x + self.second(self.act(self.first(x))))
        return self.head(self.outer(x).mean(1))


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_proven_neuron_of_a_transformer_never_leaves_its_piece(
    norm: Callable[[int], nn.Module], norm_first: bool, seeds: int
) -> None:
    wrong, proven, free = 0, 0, 0
    for seed in range(seeds):
        model, grid = drawn(lambda *_: Transformer(norm, norm_first), 2, nn.ReLU, seed), GRIDS[2]
        capture = lc.capture(model, grid[:2])
        net = lower(capture, model)
        states = neuron_states(net, {capture.inputs[0]: (LOW, HIGH)})
        counts: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def look(module: nn.Module, args: tuple[Tensor, ...], counts: Any = counts) -> None:
            counts[module] = ((args[0] < 0).flatten(0, 1).any(0), (args[0] > 0).flatten(0, 1).any(0))

        for module in (model.act, model.outer):
            module.register_forward_pre_hook(look)
        with torch.no_grad():
            model(grid)
        for module, name in ((model.act, "act"), (model.outer, "outer")):
            below, above = counts[module]
            wrong += int((above & (states[name] == OFF)).sum() + (below & (states[name] == ON)).sum())
        proven += int((states["act"] != MIXED).sum())
        free += int((neuron_states(net)["act"] != MIXED).sum())
    assert wrong == 0
    # Behind a norm, whatever the input: the box adds what it says of the tokens.
    assert proven >= free > 0


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_first_layer_is_decided_exactly(seeds: int) -> None:
    """A linear function reaches its ends at corners of the box: there interval propagation misses nothing."""
    corners = everything(3, 2)
    for seed in range(seeds):
        model = drawn(dense, 3, nn.ReLU, seed)
        capture = lc.capture(model, corners)
        states = neuron_states(lower(capture, model), {capture.inputs[0]: (LOW, HIGH)})["2"]
        with torch.no_grad():
            z = model[1](model[0](corners))
        clear = z.abs().amin(0) > 1e-4  # nearer to the bend, rounding decides
        expected = torch.where((z > 0).all(0), ON, torch.where((z < 0).all(0), OFF, MIXED))
        assert torch.equal(states[clear].long(), expected[clear])


def test_rounding_at_the_bend_is_covered() -> None:
    """Biases that put the lowest value of every neuron on the bend, give or take a few roundings of float32."""
    torch.manual_seed(0)
    inputs, neurons = 64, 2000
    model = nn.Sequential(nn.Linear(inputs, neurons), nn.ReLU(), nn.Linear(neurons, 1))
    low, high = torch.tensor([LOW, HIGH]).double()  # as float32 has them
    weight = model[0].weight.data.double()
    corner = torch.where(weight > 0, low, high)  # row i: the input where neuron i is lowest
    lowest = (weight * corner).sum(1)
    index = torch.arange(neurons)
    above = torch.where(index % 4 == 0, 200, index % 17 - 8)  # the bend, by so many roundings of the sum
    model[0].bias.data.copy_((-lowest + above * 2.0**-24 * lowest.abs()).float())
    capture = lc.capture(model, corner[:2].float())
    states = neuron_states(lower(capture, model), {capture.inputs[0]: (low, high)})["1"]
    with torch.no_grad():
        z = model[0](corner.float()).diagonal()
    # One product after the other: no processor rounds this differently, and few round more.
    in_order = model[0].bias.data.clone()
    for column in (model[0].weight.data * corner.float()).T:
        in_order += column
    assert not bool((((z < 0) | (in_order < 0)) & (states == ON)).any())
    # Without room for rounding some of these would have been called proven: the sums do land on the other side.
    assert int(((in_order < 0) & (model[0].bias.data.double() + lowest >= 0)).sum()) > 0
    # And the room is no more than 64 products, a bias and their sum need.
    assert bool((states[above > 2 * (inputs + 3)] == ON).all())
