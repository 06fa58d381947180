"""What `collapse` refuses before it does anything."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse.errors import LayerCollapseError
from layercollapse.graph.aten import does
from layercollapse.graph.capture import Capture
from layercollapse.graph.export import call_arguments, describe
from layercollapse.graph.operations import Does

MODES = ("exact", "repad", "refit")
COSTS = ("latency", "macs")


def check_options(mode: str, tolerance: float, cost: str, partial: bool) -> None:
    """Raise unless the options are among those that `layercollapse.collapse` describes."""
    check_mode(mode)
    if cost not in COSTS:
        raise LayerCollapseError(f"cost: expected {' or '.join(map(repr, COSTS))}, got {cost!r}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise LayerCollapseError(f"tolerance: expected a number not below 0, got {tolerance!r}")
    if not isinstance(partial, bool):
        raise LayerCollapseError(f"partial: expected True or False, got {partial!r}")


def check_mode(mode: str) -> None:
    """Raise unless a mode is one that `layercollapse.collapse` describes."""
    if mode not in MODES:
        raise LayerCollapseError(f"mode: expected {', '.join(map(repr, MODES[:-1]))} or {MODES[-1]!r}, got {mode!r}")


def check_refit(mode: str, min_r2: float, data: Any) -> None:
    """Raise unless there is what ``mode="refit"`` needs: data, and a share of the variance."""
    if isinstance(min_r2, bool) or not isinstance(min_r2, int | float) or not 0 < min_r2 <= 1:
        raise LayerCollapseError(f"min_r2: expected a share of the variance in (0, 1], got {min_r2!r}")
    if mode == "refit" and data is None:
        raise LayerCollapseError('data: expected batches to fit layers on with mode="refit", got None')


def check_example(example_inputs: Any) -> None:
    """Raise unless there is a sample in the example inputs: nothing could be compared, nor timed."""
    leaves = pytree.tree_leaves(call_arguments(example_inputs))
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    if first is not None and first.ndim > 0 and len(first) == 0:
        raise LayerCollapseError(f"example_inputs: expected at least one sample, got {describe(example_inputs)}")


def check_parameters(model: nn.Module) -> None:
    """Raise if a parameter holds NaN or infinity."""
    for name, value in model.named_parameters():
        dense = value.is_floating_point() and value.layout == torch.strided
        if dense and not bool(value.detach().isfinite().all()):
            raise LayerCollapseError(f"model: expected finite parameters, got NaN or infinity in {name!r}")


def check_statistics(captured: Capture, model: nn.Module) -> None:
    """Raise if the running mean or variance of a batch norm holds NaN or infinity.

    Other buffers may: an attention mask is full of -inf.
    """
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for node in captured.graph.nodes:
        for statistic in node.args[3:5] if does(node) is Does.BATCH_NORM else ():
            name = captured.tensors.get(getattr(statistic, "name", ""), "")
            if name in buffers and not bool(buffers[name].isfinite().all()):
                raise LayerCollapseError(f"model: expected finite running statistics, got NaN or infinity in {name!r}")


def check_buffers(captured: Capture) -> None:
    """Raise if a forward pass changes a buffer that the outputs depend on: the graph would give the first pass's."""
    if captured.stateful:
        raise LayerCollapseError(
            "model: expected outputs that do not depend on earlier calls, got buffers that forward changes and reads: "
            f"{', '.join(captured.stateful)}"
        )
