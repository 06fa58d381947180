"""Batch norms for the time in which a collapsed model trains once more.

Collapse folds every batch norm into the layers. A recipe that trained the network with them (a one-cycle learning rate
of 0.1: a ResNet-18 on MNIST) lets the same layers diverge without. So they get new ones, which change nothing at first,
and which are folded again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from layercollapse._util.modes import evaluating
from layercollapse.graph.agreement import batches

# Batches whose statistics the norms begin with.
_BATCHES = 8
_KINDS: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


def has_norms(model: nn.Module) -> bool:
    """Whether a model has batch norms."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def with_norms(model: fx.GraphModule, data: Iterable[Any]) -> fx.GraphModule:
    """A copy of a collapsed model with a batch norm behind every convolution, which changes nothing at first.

    Args:
        model: what `collapse` made; it stays as it is.
        data: batches, of which the first few give the norms their statistics.
    """
    model = _copy(model)
    norms = list[_BatchNorm]()
    for node in list(model.graph.nodes):
        layer = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = None if layer is None else _KINDS.get(type(layer))
        if layer is None or kind is None:
            continue
        weight = layer.weight
        assert isinstance(weight, Tensor)
        norm = kind(len(weight)).to(weight.device, weight.dtype)
        name = _free(model, f"{node.target}_norm")
        model.add_submodule(name, norm)
        with model.graph.inserting_after(node):
            new = model.graph.call_module(name, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        norms.append(norm)
    model.recompile()
    _measure(model, norms, data)
    return model


def without_norms(model: fx.GraphModule) -> fx.GraphModule:
    """A copy of what `with_norms` gave, in evaluation mode, with the norms folded into the convolutions before them."""
    model = _copy(model).eval()
    for node in list(model.graph.nodes):
        norm = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm):
            continue
        read = node.args[0]
        assert isinstance(read, fx.Node)
        layer: Any = model.get_submodule(str(read.target))
        parent, _, name = str(read.target).rpartition(".")
        setattr(model.get_submodule(parent), name, fuse_conv_bn_eval(layer, norm))
        node.replace_all_uses_with(read)
        model.graph.erase_node(node)
        model.delete_submodule(str(node.target))
    model.recompile()
    return model


def _copy(model: fx.GraphModule) -> fx.GraphModule:
    """A copy whose class has the same name, which that of `copy.deepcopy` has not."""
    copied = copy.deepcopy(model)
    return fx.GraphModule(copied, copied.graph, class_name=type(model).__name__)


def _free(model: nn.Module, name: str) -> str:
    known = {path for path, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())}
    while name in known:
        name += "_"
    return name


def _measure(model: nn.Module, norms: list[_BatchNorm], data: Iterable[Any]) -> None:
    """Give norms the statistics of what they read, and the scales and shifts that undo them."""
    sums: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}

    def passed(norm: nn.Module, arguments: Any, output: Any) -> Tensor:
        x = arguments[0].detach()
        values = x.double() if x.device.type in ("cpu", "cuda") else x.cpu().double()  # some have no float64
        values = values.transpose(0, 1).flatten(1)
        new = [values.sum(1), values.square().sum(1), torch.tensor(float(values.shape[1]))]
        sums[norm] = [a + b for a, b in zip(sums[norm], new, strict=True)] if sums[norm] else new
        return arguments[0]

    handles = [norm.register_forward_hook(passed) for norm in norms]
    try:
        with evaluating(model), torch.no_grad():
            for args, kwargs in batches(islice(data, _BATCHES), model, model):
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for norm, total in sums.items():
        if not total:
            continue
        assert isinstance(norm, _BatchNorm)
        mean = total[0] / total[2].to(total[0].device)
        variance = (total[1] / total[2].to(total[0].device) - mean.square()).clamp(min=0)
        for own, value in (
            (norm.running_mean, mean),
            (norm.running_var, variance),
            (norm.bias, mean),
            (norm.weight, (variance + norm.eps).sqrt()),
        ):
            assert own is not None
            with torch.no_grad():
                own.copy_(value)
