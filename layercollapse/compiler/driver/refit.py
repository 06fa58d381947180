"""Linear regions replaced by cheaper layers that are fitted on data: `collapse(mode="refit")`.

The candidates for a region (`tuning.candidates`) are fitted by least squares to what the network as it came makes of
the data. The cheapest is taken that explains enough of the variance of samples that it was not fitted on (R²). Those
that cost as much but for a small part of what the region costs count as cheap, and the best of them is taken: a 3x3
kernel with an R² of 0.97 and 15 % of the region's time, and not a 1x1 kernel with 0.81 and 14 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from layercollapse._util.modes import evaluating
from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.driver.fitting import Fitting
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.passes.linearize import Known, linearize
from layercollapse.compiler.passes.refit import LinearRegion, Replacement, linear_regions, rewritten
from layercollapse.compiler.tuning.candidates import choices
from layercollapse.compiler.tuning.timer import CostModel
from layercollapse.graph.agreement import batches, written_out
from layercollapse.graph.export import copied

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
    jobs, kept = list[Fitting](), list[Kept]()
    for region in linear_regions(net):
        some = choices(net, region, cost, device)
        if isinstance(some, str):
            kept.append(_not_refitted(region, net, some))
        elif some is not None:
            jobs.append(Fitting(some))
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


def _not_refitted(region: LinearRegion, net: Net, why: str) -> Kept:
    layers = region.layers(net)
    return Kept((str(layers[0][0].target), str(layers[-1][0].target)), f"not refitted: {why}")


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
