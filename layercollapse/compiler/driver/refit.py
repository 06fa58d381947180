"""Linear regions replaced by cheaper layers that are fitted on data: `collapse(mode="refit")`.

The candidates for a region (`tuning.candidates`) are fitted by least squares to what the network as it came makes of
the data. The cheapest is taken that explains enough of the variance of samples that it was not fitted on (R²). Those
that cost as much but for a small part of what the region costs count as cheap, and the best of them is taken: a 3x3
kernel with an R² of 0.97 and 15 % of the region's time, and not a 1x1 kernel with 0.81 and 14 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from layercollapse._util.modes import evaluating
from layercollapse.compiler.analysis.least_squares import Fit, NormalEquations
from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.analysis.patches import inner_columns, patches
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.ir.graph import Net, shape
from layercollapse.compiler.ir.records import Affine, ConvGeometry, Origin
from layercollapse.compiler.passes.linearize import Known, linearize
from layercollapse.compiler.passes.refit import LinearRegion, Replacement, Windows, linear_regions, rewritten
from layercollapse.compiler.tuning.candidates import Candidate, Choices, choices, point, unknowns
from layercollapse.compiler.tuning.timer import MARGIN, CostModel
from layercollapse.graph.agreement import batches, written_out
from layercollapse.graph.export import copied

# Samples that a fit needs at least for each of its unknowns of an output, and that it is given at most.
_FEWEST, _MOST = 4, 16
# Numbers in the sums that are held at a time, 2 GiB: with more the data are gone through again.
_HELD = 1 << 28
# Of every batch, one sample in so many is held out; of smaller batches, one batch in so many.
_HELD_OUT = 5
# Numbers in the features that are held at a time.
_FEATURES = 1 << 23


@dataclass(frozen=True)
class Refitted:
    """A linear region that is fitted layers now.

    Attributes:
        layers: the layers of the model that are gone.
        sites: the rectifier sites between them, which had collapsed.
        by: what replaced them, in words.
        r2: the share of the variance of the region's outputs that the fit explains, on samples that it was not fitted
            on; of the network as it came, before it is trained again.
        before: multiply-accumulates of the region as it collapses exactly, for one sample of the example inputs.
        after: multiply-accumulates of what replaced it.
        ms_before: time of its layers in ms, as the cost model has it; None with ``cost="macs"``.
        ms_after: the same of what replaced it.
    """

    layers: tuple[str, ...]
    sites: tuple[str, ...]
    by: str
    r2: float
    before: int
    after: int
    ms_before: float | None = None
    ms_after: float | None = None

    def __str__(self) -> str:
        cost = f"{self.before:,} → {self.after:,} multiply-accumulates"
        if self.ms_before is not None:
            cost += f", {self.ms_before:.3f} → {self.ms_after:.3f} ms"
        return f"{self.layers[0]} … {self.layers[-1]} ({len(self.layers)} layers): {self.by}, R² {self.r2:.3f}; {cost}"


@dataclass(frozen=True, eq=False)
class Refit:
    """What came of it.

    Attributes:
        net: the network with the fitted layers, from which the exact collapse goes on.
        regions: what is fitted; `net` is as it came where there is none.
        kept: regions that are not, and why.
    """

    net: Net
    regions: tuple[Refitted, ...]
    kept: tuple[Kept, ...]


class _Job:
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

    def add(self, values: Mapping[str, Tensor], batch: int, most: int) -> None:
        """Take some positions of a batch.

        Args:
            values: the tensors of the net by the names of nodes.
            batch: its number.
            most: how many positions at most.
        """
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
        found, first = list[Tensor](), 0
        for node, window in self.choices.windows.items():
            channels = shape(node)[self.choices.dim]
            found.append(first + inner_columns(channels, window.kernel, windows[node].kernel))
            first += channels * math.prod(window.kernel)
        return torch.cat(found)

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
        made, first = list[tuple[fx.Node, Affine]](), 0
        for index, (node, window) in enumerate(candidate.windows.items()):
            channels = shape(node)[self.choices.dim]
            count = channels * math.prod(window.kernel)
            part = weight[:, first : first + count].reshape(-1, channels, *window.kernel)
            bias = fit.bias if up is None and index == 0 else none
            made.append((node, _affine(part, bias, window, dtype, origin)))
            first += count
        if up is None:
            return Replacement(self.choices.region, made)
        one = point(made[0][1].geometry)
        last = _affine(up.reshape(*up.shape, *one.kernel), fit.bias, one, dtype, origin)
        return Replacement(self.choices.region, made, last)


def refit(
    model: nn.Module,
    base: Net,
    known: Mapping[str, Known],
    data: Iterable[Any],
    *,
    least: float,
    cost: CostModel | None,
    device: torch.device,
    sites: Mapping[str, str],
) -> Refit:
    """Replace the linear regions of a net by the cheapest layers that fit well enough.

    Args:
        model: what came.
        base: that as lowered; it stays as it is.
        known: the sites that have collapsed, as for `linearize`.
        data: batches to fit on; gone through more than once.
        least: the R² that a fit must have.
        cost: what decides which layers are cheaper; None: multiply-accumulates.
        device: where the model is.
        sites: captured node of a rectifier -> the name of its site.
    """
    net = base.copy()
    linearize(net, known)
    jobs, kept = list[_Job](), list[Kept]()
    for region in linear_regions(net):
        some = choices(net, region, cost, device)
        if isinstance(some, str):
            kept.append(_not_refitted(region, net, some))
        elif some is not None:
            jobs.append(_Job(some))
    replacements, found = list[Replacement](), list[Refitted]()
    for group in _together(jobs):
        _go_through(group, model, base, data, device)
        for job in group:
            made = job.chosen(least)
            job.end()
            if isinstance(made, str):
                kept.append(_not_refitted(job.choices.region, net, made))
                continue
            candidate, r2, replacement = made
            replacements.append(replacement)
            origins = [str(node.meta.get("origin")) for node in job.choices.region.nodes]
            found.append(
                Refitted(
                    layers=tuple(str(node.target) for node, _ in job.choices.layers),
                    sites=tuple(sites[name] for name in origins if name in sites),
                    by=str(candidate),
                    r2=r2,
                    before=job.choices.macs,
                    after=candidate.macs,
                    ms_before=None if cost is None else job.choices.cost,
                    ms_after=None if cost is None else candidate.cost,
                )
            )
    return Refit(rewritten(base, replacements) if replacements else base, tuple(found), tuple(kept))


def _affine(weight: Tensor, bias: Tensor, window: ConvGeometry, dtype: torch.dtype, origin: Origin) -> Affine:
    return Affine(weight, bias, window, 1, dtype, origin=origin)


def _not_refitted(region: LinearRegion, net: Net, why: str) -> Kept:
    layers = region.layers(net)
    return Kept((str(layers[0][0].target), str(layers[-1][0].target)), f"not refitted: {why}")


def _together(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """The jobs in groups whose sums are held at a time."""
    group, held = list[_Job](), 0
    for job in jobs:
        size = 2 * job.features * (job.features + job.choices.outputs)
        if group and held + size > _HELD:
            yield group
            group, held = [], 0
        group.append(job)
        held += size
    if group:
        yield group


@torch.no_grad()
def _go_through(jobs: Sequence[_Job], model: nn.Module, base: Net, data: Iterable[Any], device: torch.device) -> None:
    """Give the jobs what they sum up: the tensors of the network as it came, batch by batch."""
    names = list(dict.fromkeys(node.name for job in jobs for node in (job.choices.region.root, *job.choices.windows)))
    taps = _giving(base, names, device)
    sized = isinstance(data, Sized) and not isinstance(data, Tensor | Mapping)
    count = len(data) if sized else sum(1 for _ in batches(data, model, taps))  # type: ignore[arg-type]
    for job in jobs:
        job.begin()
    with evaluating(model), evaluating(taps), written_out():
        for batch, (args, kwargs) in enumerate(batches(data, model, taps)):
            values = dict(zip(names, taps(*copied(args), **copied(kwargs)), strict=True))
            for job in jobs:
                job.add(values, batch, math.ceil(_MOST * job.features / max(1, count)))


def _giving(base: Net, names: Sequence[str], device: torch.device) -> nn.Module:
    """A module of a net that gives some of its tensors."""
    net = base.copy()
    nodes = {node.name: node for node in net.graph.nodes}
    output = next(node for node in net.graph.nodes if node.op == "output")
    output.args = ([nodes[name] for name in names],)
    net.out_spec, net.memory = pytree.tree_structure([0] * len(names)), None
    net.sweep()
    return emit(net, device)
