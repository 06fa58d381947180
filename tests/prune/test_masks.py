"""Pruned weights stay at zero: through optimizers, casts, copies and a state."""

import copy
import io

import pytest
import torch

from layercollapse import LayerCollapseError
from pruning import (
    image,
    measure,
    residual,
    same,
    snapshot,
    zeros_hold,
)

pytestmark = pytest.mark.usefixtures("seeded")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.01),
    ],
)
def test_attach_keeps_zeros_through_an_optimizer(device, optimizer):
    (model, pruner), x = residual(device), image(device)
    optimizer = optimizer(model.parameters())

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    train(3)  # momentum from before the pruning
    pruner.step(measure(model, x), 0.5, "uniform")
    with pruner.attach(optimizer):
        train(3)
        assert zeros_hold(pruner)
    handle = pruner.attach(optimizer)
    train(1)
    assert zeros_hold(pruner)
    handle.remove()
    train(1)
    assert not zeros_hold(pruner)
    pruner.apply()
    assert zeros_hold(pruner)


def test_after_to_and_after_a_deep_copy():
    (model, pruner), x = residual(), image()
    pruner.step(measure(model, x), 0.5, "uniform")
    before = snapshot(model, pruner)
    twin = copy.deepcopy(pruner)
    other_model, other = copy.deepcopy((model, pruner))
    assert other.model is other_model
    for copied in (twin, other):
        copied.model.double()
        copied.step(measure(copied.model, x.double()), 0.5, "uniform")
        assert zeros_hold(copied)
        assert copied.density == pytest.approx(0.25, abs=1e-3)
    assert same(before, snapshot(model, pruner))
    model.to(torch.bfloat16, memory_format=torch.channels_last)
    pruner.step(measure(model, x.bfloat16()), 0.5, "uniform")
    assert zeros_hold(pruner)


def test_state_dict_round_trip():
    (model, pruner), x = residual(), image()
    other = copy.deepcopy(pruner)
    fresh = other.model
    pruner.step(measure(model, x), 0.5)
    buffer = io.BytesIO()
    torch.save(pruner.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert same(snapshot(model, pruner), snapshot(fresh, other))
    assert other.density == pruner.density
    other.step(measure(fresh, x), 0.5)  # the loaded masks are its own
    assert other.density < pruner.density


def change(**entries):
    return lambda state: state | entries


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (list, "expected a dict of packed masks"),
        (lambda state: {k: v for k, v in state.items() if k != "skip.weight"}, "got no skip.weight"),
        (change(other=torch.zeros(1)), "got unknown other"),
        (
            lambda s: s | {"stem.weight": s["stem.weight"][:-1]},
            r"'stem.weight': expected uint8 \(14,\) .* got .*\(13,\)",
        ),
        (lambda s: s | {"stem.weight": s["stem.weight"].float()}, "expected uint8.*got torch.float32"),
        (lambda s: s | {"stem.weight": None}, "expected uint8.*got NoneType"),
        (lambda s: s | {"stem.weight": s["stem.weight"] | 255}, "no bits beyond its 108 weights"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(corrupt, message):
    (model, pruner), x = residual(), image()
    pruner.step(measure(model, x), 0.5)
    before = snapshot(model, pruner)
    with pytest.raises(LayerCollapseError, match=message):
        pruner.load_state_dict(corrupt({k: torch.zeros_like(v) for k, v in pruner.state_dict().items()}))
    assert same(before, snapshot(model, pruner))


def test_after_an_optimizer_step_nothing_is_asked_of_the_data():
    (model, pruner), x = residual(), image()
    report = measure(model, x)
    pruner.step(report, 0.5)
    mask = pruner._masks.mask("conv3.weight")
    with torch.no_grad():
        model.conv3.weight.fill_(float("nan"))
    pruner.apply()
    assert torch.equal(model.conv3.weight.isnan(), mask)
    assert not model.conv3.weight[~mask].any()
    with pytest.raises(LayerCollapseError, match=r"weights: expected finite numbers.*in conv3\.weight"):
        pruner.step(report, 0.5)
    nothing = {name: torch.zeros_like(packed) for name, packed in pruner.state_dict().items()}
    pruner.load_state_dict(nothing)
    assert not model.conv3.weight.any()


def test_a_step_zeroes_what_an_optimizer_revived():
    (model, pruner), x = residual(), image()
    report = measure(model, x)
    pruner.step(report, 0.5, "uniform")
    with torch.no_grad():
        model.conv3.weight.add_(1)
    assert not zeros_hold(pruner)
    pruner.step(report, 0.5, lambda layers, amount: {})
    assert zeros_hold(pruner)
