"""Fitting the candidates for a linear region to what the network makes of the data, and choosing one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from layercollapse.compiler.analysis.least_squares import Fit, NormalEquations
from layercollapse.compiler.analysis.patches import inner_columns, patches
from layercollapse.compiler.ir.graph import shape
from layercollapse.compiler.ir.records import Affine, ConvGeometry, Origin
from layercollapse.compiler.passes.refit import Replacement, Windows
from layercollapse.compiler.tuning.candidates import Candidate, Choices, point, unknowns
from layercollapse.compiler.tuning.timer import MARGIN

# Positions that a fit needs at least for each of its unknowns of an output, and that it is given about.
_FEWEST, _MOST = 4, 16
# Of every batch, one sample in so many is held out; of smaller batches, one batch in so many.
_HELD_OUT = 5
# Numbers in the features that are held at a time.
_FEATURES = 1 << 23


class Fitting:
    """The sums that the candidates for a region are fitted by.

    Args:
        choices: the candidates.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.features = unknowns(choices.windows, choices.dim)

    def begin(self) -> None:
        """Start with no samples."""
        self.fitted = NormalEquations(self.features, self.choices.outputs)
        self.held = NormalEquations(self.features, self.choices.outputs, origin=self.fitted)

    def end(self) -> None:
        """Let the sums go."""
        del self.fitted, self.held

    def add(self, values: Mapping[str, Tensor], batch: int, count: int) -> None:
        """Take some positions of a batch.

        Args:
            values: the tensors of the net by the names of nodes.
            batch: its number.
            count: how many batches there are.
        """
        most = math.ceil(_MOST * self.features / max(1, count))
        y = values[self.choices.region.root.name].movedim(self.choices.dim, -1).flatten(0, -2)
        samples = len(values[self.choices.region.root.name])
        # Positions are drawn alike whatever torch's random numbers are, and leave them alone.
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(batch)) if len(y) > most else None
        positions = torch.arange(len(y)) if order is None else order[:most].sort().values
        sample = positions // max(1, len(y) // samples)
        last = samples - samples // _HELD_OUT
        held_out = sample >= last if samples >= _HELD_OUT else torch.full_like(sample, batch % _HELD_OUT == 4).bool()
        for equations, part in ((self.fitted, positions[~held_out]), (self.held, positions[held_out])):
            for some in part.split(max(1, _FEATURES // self.features)):
                read = [patches(values[node.name], window, some) for node, window in self.choices.windows.items()]
                equations.add(torch.cat(read, 1), y[some.to(y.device)])

    def columns(self, windows: Windows) -> Tensor:
        """Which of the features are those of smaller windows."""
        slices, first = list[Tensor](), 0
        for node, window in self.choices.windows.items():
            channels = shape(node)[self.choices.dim]
            slices.append(first + inner_columns(channels, window.kernel, windows[node].kernel))
            first += channels * math.prod(window.kernel)
        return torch.cat(slices)

    def chosen(self, least: float) -> tuple[Candidate, float, Replacement] | str:
        """The best candidate that explains enough, with its R² and its layers; or why there is none."""
        best: tuple[Candidate, float] | None = None
        chosen: tuple[Candidate, float, Tensor] | None = None
        most = math.inf
        few = ""
        fits: dict[int, tuple[Fit, Tensor]] = {}
        for candidate in self.choices.candidates:
            columns = self.columns(candidate.windows)
            needed = _FEWEST * len(columns)
            if self.fitted.samples < needed or not self.held.samples:
                few = few or (
                    f"the {len(columns):,} unknowns for each output of {candidate} need {needed:,} positions in the "
                    f"data to be fitted on, and others to be tried on; there are {self.fitted.samples:,} and "
                    f"{self.held.samples:,}"
                )
                continue
            if len(columns) not in fits:
                fit = self.fitted.fit(columns)
                if fit is None:
                    return "the data make values there that are not finite"
                fits[len(columns)] = fit, columns
            fit, columns = fits[len(columns)]
            tried = fit if candidate.rank is None else self.fitted.low_rank(fit, candidate.rank, columns)[0]
            r2 = self.held.explained(tried, columns)
            if r2 >= least and candidate.cost <= most and (chosen is None or r2 > chosen[1]):
                chosen, most = (candidate, r2, columns), min(most, candidate.cost + MARGIN * self.choices.cost)
            if best is None or r2 > best[1]:
                best = candidate, r2
        if chosen is not None:
            return *chosen[:2], self._replacement(chosen[0], chosen[2])
        said = best and f"{best[0]} explains {best[1]:.3f} of its variance (R²), less than {least:g}"
        return "; ".join(filter(None, (said, few)))

    def _replacement(self, candidate: Candidate, columns: Tensor) -> Replacement:
        """The layers of a candidate, fitted on all samples."""
        every = self.fitted + self.held
        fit = every.fit(columns)
        assert fit is not None
        weight, up = fit.weight, None
        if candidate.rank is not None:
            fit, up, weight = every.low_rank(fit, candidate.rank, columns)
        dtype, origin = self.choices.layers[0][1].dtype, max(op.origin for _, op in self.choices.layers)
        none = torch.zeros(len(weight), dtype=torch.float64)
        layers, first = list[tuple[fx.Node, Affine]](), 0
        for index, (node, window) in enumerate(candidate.windows.items()):
            channels = shape(node)[self.choices.dim]
            count = channels * math.prod(window.kernel)
            part = weight[:, first : first + count].reshape(-1, channels, *window.kernel)
            bias = fit.bias if up is None and index == 0 else none
            layers.append((node, _affine(part, bias, window, dtype, origin)))
            first += count
        if up is None:
            return Replacement(self.choices.region, layers)
        one = point(layers[0][1].geometry)
        last = _affine(up.reshape(*up.shape, *one.kernel), fit.bias, one, dtype, origin)
        return Replacement(self.choices.region, layers, last)


def _affine(weight: Tensor, bias: Tensor, window: ConvGeometry, dtype: torch.dtype, origin: Origin) -> Affine:
    return Affine(weight, bias, window, 1, dtype, origin=origin)
