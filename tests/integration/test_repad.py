"""mode="repad": convolutions that one cannot replace at the border merge, and the result says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import layercollapse as lc


def wide(k1: int, s1: int, p1: int, k2: int, p2: int) -> nn.Sequential:
    """Two convolutions, with so many channels between them that merging pays; the rectifier after them stays."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 40, k1, s1, p1), nn.Conv2d(40, 3, k2, padding=p2), nn.ReLU(), nn.Conv2d(3, 2, 1)
    ).double()


@pytest.mark.parametrize(("k1", "s1", "p1", "k2", "p2"), [(3, 1, 1, 3, 1), (3, 2, 0, 3, 1), (2, 1, 0, 3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_merged_is_the_pair_with_the_padding_moved(k1: int, s1: int, p1: int, k2: int, p2: int, bias: bool) -> None:
    model, x = wide(k1, s1, p1, k2, p2), torch.randn(3, 2, 15, 17).double()
    if not bias:
        model[0].bias.data.zero_()
    exact = lc.collapse(model, x, None, cost="macs", tolerance=1e-9)
    assert (exact.after.depth, exact.repadded) == (3, ())
    result = lc.collapse(model, x, None, cost="macs", tolerance=1e-9, mode="repad")
    assert (result.after.depth, result.repadded) == (2, ("0 → 1",))
    assert result.after.macs < exact.after.macs
    moved = wide(k1, s1, p1, k2, p2)
    moved.load_state_dict(model.state_dict())
    moved[0].padding, moved[1].padding = (p1 + p2 * s1,) * 2, (0, 0)
    torch.testing.assert_close(result.model(x), moved(x))
    # The inside is the model's own: what no padding of the second reaches.
    edge = p2 + 1
    inside = (slice(None), slice(None), slice(edge, -edge), slice(edge, -edge))
    torch.testing.assert_close(result.model(x)[inside], model(x)[inside])
    assert result.max_abs_error == pytest.approx(float((result.model(x) - model(x)).detach().abs().max()))
    assert result.max_abs_error > 1e-3  # far above the tolerance, which does not judge the border
    assert "approximate at the border" in result.explain()
    assert f"differ by {result.max_abs_error:.3g}" in result.explain()


def test_what_does_not_pay_is_not_padded_anew() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)).double()
    result = lc.collapse(model, torch.randn(2, 4, 9, 9).double(), None, cost="macs", mode="repad", tolerance=1e-9)
    assert result.repadded == ()
    assert result.max_abs_error < 1e-9
    assert "times the multiply-accumulates" in result.explain()


def test_the_sites_still_have_to_keep_the_tolerance() -> None:
    model = wide(3, 1, 1, 3, 1)
    model.insert(1, nn.ReLU())
    model[0].bias.data += 5
    near = torch.randn(4, 2, 9, 9).double()
    with torch.no_grad(), lc.EntropyProbe(model) as probe:
        model(near)
    report = probe.report()
    assert report["1"].collapsible
    collapsed = lc.collapse(model, near, report, cost="macs", mode="repad")
    assert (collapsed.collapsed, collapsed.repadded) == (("1",), ("0 → 2",))
    kept = lc.collapse(model, near, report, data=[100 * near], cost="macs", mode="repad")
    assert (kept.collapsed, kept.repadded) == ((), ())


def test_the_result_trains_back_to_the_model() -> None:
    model, x = wide(3, 1, 1, 3, 1), torch.randn(8, 2, 8, 8).double()
    model[2] = nn.Identity()
    result = lc.collapse(model, x, None, cost="macs", mode="repad")
    collapsed, target = result.model.train(), model(x).detach()
    optimizer = torch.optim.Adam(collapsed.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        loss = (collapsed(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
