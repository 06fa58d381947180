"""Compare two models on data: the largest difference of their outputs, and whether they predict the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse._util.modes import evaluating, same_values
from layercollapse._util.spread import Spread
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.export import arguments_in, call_arguments, copied, describe

# An output whose spread is below the inverse of this is judged by its spread: of one that varies by 1e-4 over the data,
# the default tolerance of 1e-4 would accept any constant.
_WEIGHT = 100.0

# Outputs that vary by less than this part of their size hardly depend on the input.
_HARDLY = 1e-3


@dataclass(frozen=True)
class Output:
    """How far one output tensor of two models agrees.

    Attributes:
        error: largest absolute difference of any entry.
        spread: largest difference of an entry of the reference between two samples; None with one sample alone.
        scale: largest finite magnitude of the reference.
        rounding: what differences may be by rounding alone.
    """

    error: float
    spread: float | None
    scale: float
    rounding: float

    def limit(self, tolerance: float) -> float:
        """The largest error that is accepted; see `layercollapse.collapse`."""
        if self.spread is None or tolerance == math.inf:
            return tolerance
        # A constant has no spread to be judged by, and its rounding errors are those of larger numbers that made it.
        part = _WEIGHT * self.spread if self.spread > self.rounding else self.scale
        return min(tolerance, max(tolerance * part, self.rounding))

    @property
    def hardly_varies(self) -> bool:
        """Whether there were samples to compare, and next to no difference between them."""
        return self.spread is not None and self.spread <= _HARDLY * self.scale


@dataclass(frozen=True)
class Agreement:
    """How far two models agree.

    Attributes:
        max_abs_error: largest absolute difference of any output.
        same: number of samples with the same prediction (the largest entry along the last dimension).
        samples: number of samples compared.
        outputs: the same by output tensor.
    """

    max_abs_error: float
    same: int
    samples: int
    outputs: tuple[Output, ...] = ()

    def within(self, tolerance: float) -> bool:
        """Whether every output keeps a tolerance, by its own spread too; see `layercollapse.collapse`."""
        return self.max_abs_error <= tolerance and all(one.error <= one.limit(tolerance) for one in self.outputs)

    def miss(self, tolerance: float) -> str:
        """By how much the tolerance is missed, in words that follow "differ by" or "changes the outputs by"."""
        if self.max_abs_error > tolerance or self.within(tolerance):
            return f"{self.max_abs_error:.3g}, more than the tolerance"
        worst = max(self.outputs, key=lambda one: one.error - one.limit(tolerance))
        if worst.spread is not None and worst.spread > worst.rounding:
            return f"{worst.error:.3g}, and vary by no more than {worst.spread:.3g} over the data"
        return f"{worst.error:.3g}, and are constants of no more than {worst.scale:.3g}"

    @property
    def spread(self) -> float | None:
        """Largest difference of any entry of the reference's outputs between two samples; None with one sample."""
        return max((one.spread for one in self.outputs if one.spread is not None), default=None)

    @property
    def hardly_varies(self) -> bool:
        """Whether no output of the reference depends on the sample by more than a thousandth of its size."""
        return bool(self.outputs) and all(one.hardly_varies for one in self.outputs)


@contextmanager
def written_out() -> Iterator[None]:
    """The block without torch's fused transformer layers, which it takes where nothing has a gradient.

    At padded positions they give zeros, where the same layers give something else while they train.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def compare(reference: nn.Module, model: nn.Module, data: Iterable[Any]) -> Agreement:
    """Run both models in evaluation mode on the same batches.

    Args:
        reference: the model that is right.
        model: the model to test; called with the same arguments.
        data: batches: a tensor, a tuple or list whose first element is the model's input, or a dict of keyword
            arguments, of which those are taken that `model` takes (see `arguments_in`).

    Raises:
        LayerCollapseError: there is no batch, or the outputs cannot be compared.
    """
    errors, spreads = list[float](), list[Spread]()
    same, samples = 0, 0
    with evaluating(reference), evaluating(model), written_out(), torch.no_grad():
        for args, kwargs in batches(data, reference, model):
            try:
                # A model may work in place on what it is given.
                expected = tensors_of(reference(*copied(args), **copied(kwargs)))
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                raise LayerCollapseError(
                    f"data: the model must run on every batch; {describe(args, kwargs)} came, and it stopped with "
                    f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                ) from error
            got = tensors_of(model(*copied(args), **copied(kwargs)))
            if not expected:
                raise LayerCollapseError("model: expected outputs with a tensor, got none")
            if [t.shape for t in expected] != [t.shape for t in got]:
                raise LayerCollapseError(
                    f"model: expected outputs of shapes {[tuple(t.shape) for t in expected]}, got "
                    f"{[tuple(t.shape) for t in got]}"
                )
            # An output that only some batches have counts as well.
            spreads += [Spread() for _ in expected[len(spreads) :]]
            errors += [0.0] * (len(spreads) - len(errors))
            for index, (a, b) in enumerate(zip(expected, got, strict=True)):
                spreads[index].add(a)
                difference = (a.double() - b.double()).abs()
                # NaN in both, or the same infinity in both, agree; in one only, they are infinitely apart.
                difference[same_values(a, b)] = 0
                if difference.numel():
                    largest = float(difference.nan_to_num(nan=torch.inf).max())
                    errors[index] = max(errors[index], largest)
            first, second = expected[0], got[0]
            samples += len(first) if first.ndim else 1
            if first.ndim > 1 and first.shape[-1] > 0:
                agree = first.argmax(-1).eq(second.argmax(-1))
                same += int(agree.flatten(1).all(1).sum() if agree.ndim > 1 else agree.sum())
            else:
                same += len(first) if first.ndim else 1
    if not samples:
        raise LayerCollapseError("data: expected at least one batch with a sample, got none")
    outputs = tuple(Output(e, s.value, s.scale, s.rounding) for e, s in zip(errors, spreads, strict=True))
    return Agreement(max(errors), same, samples, outputs)


def batches(data: Iterable[Any], reference: nn.Module, model: nn.Module) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """Arguments that the model takes from each batch, on the device of the reference."""
    parameter = next(reference.parameters(), None)
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise LayerCollapseError(f"data: expected batches, got {type(data).__name__}")
    for batch in [data] if isinstance(data, Tensor | Mapping) else data:
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(inputs, Tensor | tuple | list | Mapping):
            raise LayerCollapseError(
                "data: expected batches that are a tensor, a tuple that starts with the inputs, or a dict of keyword "
                f"arguments, got {_kind(batch)}"
            )
        if isinstance(inputs, Mapping):
            inputs = arguments_in(inputs, model)
        arguments = call_arguments(inputs)
        if parameter is not None:
            arguments = pytree.tree_map_only(Tensor, lambda x: x.to(parameter.device), arguments)
        yield arguments


def _kind(batch: Any) -> str:
    """What came in the place of a batch: its type, and that of the first of several."""
    return (
        f"a {type(batch).__name__} of {type(batch[0]).__name__}"
        if isinstance(batch, tuple | list)
        else type(batch).__name__
    )


def tensors_of(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, in order, or all if none is; a model output class counts as a dict.

    A complex tensor is one of its real and imaginary parts, with a dimension more.
    """
    values = list(output.values()) if isinstance(output, Mapping) else pytree.tree_leaves(output)
    tensors = [t for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]
    tensors = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]
    return [t for t in tensors if t.is_floating_point()] or tensors
