"""Learning rates by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layercollapse.errors import LayerCollapseError
from layercollapse.zoo.optimizers import make_optimizer, make_schedule


def rates(name: str, *, lr: float, epochs: int, batches: int, milestones: tuple[int, ...] = ()) -> list[float]:
    optimizer = make_optimizer("sgd", [nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make_schedule(name, optimizer, epochs=epochs, batches=batches, milestones=milestones)
    found = []
    for _ in range(epochs * batches):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_rates_by_hand() -> None:
    assert rates("constant", lr=0.5, epochs=2, batches=2) == [0.5] * 4
    assert rates("linear", lr=1.0, epochs=2, batches=2) == pytest.approx([1, 0.75, 0.5, 0.25])
    found = rates("milestones", lr=1.0, epochs=4, batches=2, milestones=(1, 3))
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    cycle = rates("one-cycle", lr=1.0, epochs=10, batches=10)
    assert max(cycle) == pytest.approx(1)
    assert cycle[0] == pytest.approx(1 / 25)
    assert cycle[-1] < 1e-4


def test_each_optimizer_has_its_defaults() -> None:
    weight = nn.Parameter(torch.zeros(1))
    sgd, adam, adamw = (make_optimizer(name, [weight]) for name in ("sgd", "adam", "adamw"))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.1, 0.9, 5e-4)
    assert type(adam) is torch.optim.Adam
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (1e-3, 0)
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (1e-3, 0.01)
    assert make_optimizer("sgd", [weight], weight_decay=0.0).defaults["weight_decay"] == 0


def test_what_is_refused() -> None:
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    optimizer = make_optimizer("sgd", [nn.Parameter(torch.zeros(1)), frozen])
    assert len(optimizer.param_groups[0]["params"]) == 1
    with pytest.raises(LayerCollapseError, match="model: expected parameters to train"):
        make_optimizer("sgd", [frozen])
    with pytest.raises(LayerCollapseError, match="optimizer: expected one of sgd, adam, adamw, got 'lion'"):
        make_optimizer("lion", [])
    with pytest.raises(LayerCollapseError, match="schedule: expected one of one-cycle"):
        make_schedule("cosine", optimizer, epochs=1, batches=1)
    for name, milestones in (("milestones", ()), ("linear", (1,))):
        with pytest.raises(LayerCollapseError, match="milestones: expected epochs with schedule 'milestones' alone"):
            make_schedule(name, optimizer, epochs=1, batches=1, milestones=milestones)
