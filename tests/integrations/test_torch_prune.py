"""Masks of torch.nn.utils.prune."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import layercollapse as lc
from layercollapse.integrations.torch_prune import SmallestMagnitude, export_masks, import_masks

pytestmark = pytest.mark.usefixtures("seeded")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("amount", [0, 1, 7, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_method_prunes_what_torch_prunes(amount, dtype):
    ours, theirs = (nn.Linear(5, 7, dtype=dtype) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2 if amount != 1.0 else 1):
        SmallestMagnitude.apply(ours, "weight", amount=amount)
        prune.l1_unstructured(theirs, "weight", amount)
        assert torch.equal(ours.weight_mask, theirs.weight_mask)
        assert ours.weight_mask.dtype == theirs.weight_mask.dtype
        assert torch.equal(ours.weight, theirs.weight)
    ours(torch.randn(2, 5, dtype=dtype)).sum().backward()
    assert ours.weight_orig.grad is not None


def test_ties_are_exact():
    layer = nn.Linear(4, 4)
    nn.init.ones_(layer.weight)
    SmallestMagnitude.apply(layer, "weight", amount=5)
    assert layer.weight_mask.flatten().tolist() == [0.0] * 5 + [1.0] * 11


@pytest.mark.parametrize("amount", [-1, 1.5, 99])
def test_a_wrong_amount_is_refused_as_torch_does(amount):
    with pytest.raises(ValueError, match="amount"):
        SmallestMagnitude.apply(nn.Linear(4, 4), "weight", amount=amount)


def test_from_torch_to_the_pruner_and_back():
    model, x = network(), torch.randn(4, 6)
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.l1_unstructured(model[2], "weight", 0.25)
    prune.l1_unstructured(model[2], "bias", 0.5)
    before = model(x)
    masks = import_masks(model)
    assert masks.keys() == {"0.weight", "2.weight", "2.bias"}
    assert not [name for name in model.state_dict() if "mask" in name or "orig" in name]
    assert torch.equal(model(x), before)
    assert import_masks(model) == {}
    pruner = lc.Pruner(model, x)
    assert all(torch.equal(pruner.masks()[name], masks[name]) for name in ("0.weight", "2.weight"))
    masks = pruner.masks()
    export_masks(model, masks)
    assert torch.equal(model[0].weight_mask != 0, masks["0.weight"])
    assert torch.equal(model(x), before)
    with pytest.raises(lc.LayerCollapseError, match="masks: expected names of parameters"):
        export_masks(model, masks)


def test_a_bad_mask_changes_nothing():
    model = network()
    with pytest.raises(
        lc.LayerCollapseError, match=r"masks: expected one of shape \(8, 8\) for '2.weight', got \(3,\)"
    ):
        export_masks(model, {"0.weight": torch.ones(8, 6), "2.weight": torch.ones(3)})
    assert prune.is_pruned(model) is False
