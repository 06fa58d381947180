"""What a network saves without a site: worked out by hand, and against what collapse makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import layercollapse as lc
from layercollapse.compiler.driver.savings import Savings, savings
from layercollapse.compiler.frontend.lower import lower

pytestmark = pytest.mark.usefixtures("seeded")


class Branches(nn.Module):
    """Sums of blocks of two layers, and of the input."""

    def __init__(self, blocks: int, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [block(x) for block in self.blocks] + [x] * self.skip
        for part in others:
            first = first + part
        return first


def of(model: nn.Module, *shape: int) -> Savings:
    captured = lc.capture(model.eval(), torch.randn(2, *shape))
    feeding = {site.name: {name.rpartition(".")[0] for name in site.feeding} for site in captured.sites}
    return savings(lower(captured, model), feeding)


def numbers(found: Savings) -> list[tuple[int, int | None, int]]:
    return [(one.identity, one.constant, one.together) for one in found.by_site.values()]


def test_two_layers_become_one() -> None:
    found = of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 4)
    assert (found.macs, found.depth, found.least) == (4 * 8 + 8 * 3, 2, 1)
    # One layer of 4 x 3; as a constant, nothing would depend on the input.
    assert numbers(found) == [(56 - 12, None, 56 - 12)]
    assert found.by_site["1"].barriers == ()
    assert found.by_site["1"].most == 44


def test_a_branch_beside_the_input_may_go() -> None:
    found = of(Branches(1, skip=True), 4)
    assert numbers(found) == [(64 - 16, 64, 64)]
    assert found.least == 0


def test_one_of_two_branches_may_go_and_not_both() -> None:
    found = of(Branches(2, skip=False), 4)
    assert found.macs == 128
    assert numbers(found) == [(48, 64, 64), (48, 64, 128 - 16)]


def test_what_stays_two_and_why() -> None:
    found = of(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)), 2, 8, 8)
    (one,) = found.by_site.values()
    assert (one.identity, one.constant, one.together) == (0, None, 0)
    (kept,) = one.barriers
    assert kept.layers == ("0", "2")
    assert "border" in kept.reason


def test_what_is_pruned_already_is_no_work() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[:6] = 0
        model[0].bias[:6] = 0
    assert of(model, 4).macs == 4 * 2 + 2 * 3


class Blocks(nn.Module):
    """Two residual blocks of convolutions, with a stride and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.wide, self.skip = nn.Conv2d(8, 12, 3, stride=2), nn.Conv2d(8, 12, 3, stride=2)
        self.mix, self.head, self.relu = nn.Conv2d(12, 12, 1), nn.Linear(12, 5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(x + self.down(self.relu(self.up(x))))
        x = self.relu(self.mix(self.relu(self.wide(x))) + self.skip(x))
        return self.head(x.mean((2, 3)))


def work(result: lc.CollapseResult) -> int:
    return sum(part.macs for part in result.parts_after)


def test_as_collapse_has_it() -> None:
    model, x = Blocks().eval(), torch.randn(2, 3, 12, 12)
    found = of(model, 3, 12, 12)
    assert found.macs == work(lc.collapse(model, x, cost="macs"))
    assert len(found.by_site) == 5
    captured = lc.capture(model, x)
    for name, one in found.by_site.items():
        handle = lc.linearize(model, {name: "identity"}, x)
        assert found.macs - one.identity == work(lc.collapse(model, x, cost="macs")), name
        handle.remove()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        for weight in captured.site(name).feeding:
            layer = model.get_submodule(weight.rpartition(".")[0])
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if one.constant is not None:
            assert found.macs - one.constant == work(lc.collapse(model, x, cost="macs")), name
        model.load_state_dict(state)
    every = lc.linearize(model, dict.fromkeys(found.by_site, "identity"), x)
    alone = work(lc.collapse(model, x, cost="macs"))
    every.remove()
    assert found.macs - list(found.by_site.values())[-1].together <= alone
