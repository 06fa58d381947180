"""Linear regions replaced by cheaper layers that are fitted on data: `collapse(mode="refit")`.

The candidates for a region (`tuning.candidates`) are fitted by least squares to what the network as it came makes of
the data. The cheapest is taken that explains enough of the variance of samples that it was not fitted on (R²). Those
that cost as much but for a small part of what the region costs count as cheap, and the best of them is taken: a 3x3
kernel with an R² of 0.97 and 15 % of the region's time, and not a 1x1 kernel with 0.81 and 14 %.

Where nothing does for a whole region, its segments are tried: the parts between tensors that all its paths go through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse._util.modes import evaluating
from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.driver.fitting import Fitting
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.passes.linearize import Known, linearize
from layercollapse.compiler.passes.refit import LinearRegion, Replacement, linear_regions, rewritten, segments
from layercollapse.compiler.tuning.candidates import Candidate, Choices, choices
from layercollapse.compiler.tuning.timer import CostModel
from layercollapse.graph.agreement import batches, written_out
from layercollapse.graph.export import copied
from layercollapse.graph.meta import ORIGIN

# Numbers in the sums that are held at a time, 2 GiB: with more the data are gone through again.
_HELD = 1 << 28


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
    whole = linear_regions(net)

    def tried(regions: Sequence[LinearRegion]) -> dict[LinearRegion, _Made | str]:
        """What replaces each region, or why nothing does; nothing is said of those that are as cheap already."""
        options = {region: choices(net, region, cost, device) for region in regions}
        outcomes: dict[LinearRegion, _Made | str] = {r: some for r, some in options.items() if isinstance(some, str)}
        for group in _together([Fitting(some) for some in options.values() if isinstance(some, Choices)]):
            _go_through(group, model, base, data, device)
            for job in group:
                chosen = job.chosen(least)
                outcomes[job.choices.region] = chosen if isinstance(chosen, str) else _Made(job.choices, *chosen)
                job.end()
        return outcomes

    first = tried(whole)
    parts = {region: segments(net, region) for region in whole if isinstance(first.get(region), str)}
    second = tried([part for some in parts.values() for part in some.values()])
    taken, kept = list[_Made](), list[Kept]()
    for region in whole:
        fit = first.get(region)
        if isinstance(fit, _Made):
            taken.append(fit)
        elif fit is not None:
            at = {place: one for place, part in parts[region].items() if isinstance(one := second.get(part), _Made)}
            taken += _best(at)
            if not at:
                layers = region.layers(net)
                kept.append(Kept((str(layers[0][0].target), str(layers[-1][0].target)), f"not refitted: {fit}"))
    if not taken:
        return Refit(base, (), tuple(kept))
    records = tuple(one.record(sites, timed=cost is not None) for one in taken)
    return Refit(rewritten(base, [one.replacement for one in taken]), records, tuple(kept))


class _Made(NamedTuple):
    """What replaces a region: the candidate of all, its R² and its layers."""

    choices: Choices
    candidate: Candidate
    r2: float
    replacement: Replacement

    def record(self, sites: Mapping[str, str], timed: bool) -> Refitted:
        """What is said of it."""
        origins = [str(ORIGIN.get(node)) for node in self.choices.region.nodes]
        return Refitted(
            layers=tuple(str(node.target) for node, _ in self.choices.layers),
            sites=tuple(sites[name] for name in origins if name in sites),
            by=str(self.candidate),
            r2=self.r2,
            before=self.choices.macs,
            after=self.candidate.macs,
            ms_before=self.choices.cost if timed else None,
            ms_after=self.candidate.cost if timed else None,
        )


def _best(fitted: Mapping[tuple[int, int], _Made]) -> list[_Made]:
    """The replacements of segments, first and last, that do not overlap and save the most together.

    By dynamic programming over the end of the last segment; what no segment replaces stays as it collapses exactly.
    """
    best: list[tuple[float, list[_Made]]] = [(0.0, [])]
    for end in range(1, 1 + max((last for _, last in fitted), default=0)):
        best.append(best[-1])
        for first, one in ((first, one) for (first, last), one in fitted.items() if last == end):
            saved = best[first][0] + one.choices.cost - one.candidate.cost
            if saved > best[end][0]:
                best[end] = saved, [*best[first][1], one]
    return best[-1][1]


def _together(jobs: Sequence[Fitting]) -> Iterator[list[Fitting]]:
    """The jobs in groups whose sums are held at a time."""
    group, held = list[Fitting](), 0
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
def _go_through(
    jobs: Sequence[Fitting], model: nn.Module, base: Net, data: Iterable[Any], device: torch.device
) -> None:
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
                job.add(values, batch, count)


def _giving(base: Net, names: Sequence[str], device: torch.device) -> nn.Module:
    """A module of a net that gives some of its tensors."""
    net = base.copy()
    nodes = {node.name: node for node in net.graph.nodes}
    output = next(node for node in net.graph.nodes if node.op == "output")
    output.args = ([nodes[name] for name in names],)
    net.out_spec, net.memory = pytree.tree_structure([0] * len(names)), None
    net.sweep()
    return emit(net, device)
