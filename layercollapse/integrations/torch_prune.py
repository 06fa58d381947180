"""Masks of `torch.nn.utils.prune`, in and out, and a pruning method of it that runs on this package's kernel.

from torch import nn
from torch.nn.utils import prune
from layercollapse.integrations import torch_prune

model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
torch_prune.SmallestMagnitude.apply(model[0], "weight", amount=0.5)
masks = torch_prune.import_masks(model)       # plain weights again, with zeros: what `Pruner` starts from
torch_prune.export_masks(model, masks)        # weight_orig and weight_mask again
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from layercollapse import ops
from layercollapse.errors import LayerCollapseError

_MASK = "_mask"


def import_masks(model: nn.Module) -> dict[str, Tensor]:
    """Make the masks of `torch.nn.utils.prune` permanent: weights are plain parameters again, with zeros.

    A `layercollapse.Pruner` that is built then counts these zeros as pruned.

    Args:
        model: changed in place; a model without such masks stays as it is.

    Returns:
        Name of a weight -> bool mask of its shape, True where it is kept.
    """
    masks: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for buffer in [name for name, _ in module.named_buffers(recurse=False) if name.endswith(_MASK)]:
            name = buffer.removesuffix(_MASK)
            if f"{name}_orig" in module._parameters:
                masks[f"{path}.{name}" if path else name] = getattr(module, buffer).detach() != 0
                prune.remove(module, name)
    return masks


def export_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give weights the masks of `torch.nn.utils.prune`: ``weight_orig`` is the parameter, ``weight_mask`` the mask.

    Args:
        model: changed in place.
        masks: bool masks by the weight's name, as `layercollapse.Pruner.masks` gives them.

    Raises:
        LayerCollapseError: a name is that of no parameter, or a mask is not of its shape. Nothing has changed.
    """
    places = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise LayerCollapseError(f"masks: expected names of parameters of the model, got {name!r}")
        if not isinstance(mask, Tensor) or mask.shape != parameters[name].shape:
            raise LayerCollapseError(
                f"masks: expected one of shape {tuple(parameters[name].shape)} for {name!r}, got "
                f"{tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}"
            )
        path, _, attribute = name.rpartition(".")
        places.append((model.get_submodule(path), attribute, mask))
    for module, attribute, mask in places:
        prune.custom_from_mask(module, attribute, mask)


class SmallestMagnitude(prune.BasePruningMethod):
    """Prunes the weights of smallest magnitude, as `prune.L1Unstructured` does, by `ops.masked_topk_`.

    Exactly so many go, ties by position; a second call prunes among what the first has left.

    Args:
        amount: a float in [0, 1] is a fraction of the weights still kept, an int a number of weights.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float) -> None:
        prune._validate_pruning_amount_init(amount)
        self.amount = amount

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Scores and the mask so far, of one shape -> the new mask, of the same shape and dtype."""
        kept = default_mask != 0
        count = prune._compute_nparams_toprune(self.amount, int(kept.sum()))
        prune._validate_pruning_amount(count, int(kept.sum()))
        with torch.no_grad():
            scores, packed = t.detach().clone(memory_format=torch.contiguous_format), ops.pack_mask(kept.contiguous())
            if count:
                ops.masked_topk_(scores, packed, count)
            return ops.unpack_mask(packed, t.shape).to(default_mask)

    @classmethod
    def apply(cls, module: nn.Module, name: str, amount: float, importance_scores: Any = None) -> Any:  # type: ignore[override]
        """Prune a parameter of a module; see `torch.nn.utils.prune.l1_unstructured`."""
        return super().apply(module, name, amount=amount, importance_scores=importance_scores)
