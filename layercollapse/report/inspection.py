"""What a network could become, before anything is trained: rectifiers, linear regions, what keeps layers apart.

seen = layercollapse.inspect(model, example_inputs)
print(seen.table())
Path("network.svg").write_text(seen.to_svg())
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layercollapse._util.columns import aligned
from layercollapse._util.devices import on_cpu
from layercollapse._util.modes import evaluating
from layercollapse._util.tensors import check_values
from layercollapse.compiler.analysis.chart import Box, Region, chart, regions
from layercollapse.compiler.analysis.obstacles import grouped
from layercollapse.compiler.driver.candidates import unreplaceable
from layercollapse.compiler.driver.check import check_buffers, check_example, check_parameters, check_statistics
from layercollapse.compiler.driver.savings import Saving, savings
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.ir.graph import Net
from layercollapse.graph import rectifiers
from layercollapse.graph.capture import Capture, Site, checked_capture
from layercollapse.graph.prunable import prunable
from layercollapse.graph.watch import unwrapped
from layercollapse.report import diagram

_NAMES = 2  # of the layers that feed a site, in a row of the table
_LONGEST = 44  # characters of a name there


@dataclass(frozen=True)
class InspectedSite:
    """A rectifier site, and what the network could save without it.

    Attributes:
        name: the site.
        kind: the rectifier.
        neurons: how many it has.
        feeding: the layers that feed it.
        saving: in multiply-accumulates; None where the rectifier cannot go, or has gone already.
        notes: what is to be known of it: that it is not piecewise linear, say, or why it cannot go.
    """

    name: str
    kind: str
    neurons: int
    feeding: tuple[str, ...]
    saving: Saving | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """A network as `collapse` sees it.

    Attributes:
        sites: its rectifier sites, in execution order.
        boxes: its layers, rectifiers and other operations, in execution order, and what each reads.
        macs: multiply-accumulates of its layers for one sample of the example inputs.
        depth: the largest number of layers with weights on any path from input to output.
        least: the same with no rectifier left.
        notes: what is to be known of the network, in sentences.
    """

    sites: tuple[InspectedSite, ...]
    boxes: tuple[Box, ...]
    macs: int
    depth: int
    least: int
    notes: tuple[str, ...] = ()

    @property
    def regions(self) -> dict[int, Region]:
        """The linear regions by their number: layers that make one tensor, with no rectifier between them."""
        return regions(self.boxes)

    @property
    def most(self) -> int:
        """Multiply-accumulates that are saved at most, with no rectifier left."""
        return max((site.saving.together for site in self.sites if site.saving is not None), default=0)

    def share(self, macs: int | None) -> str:
        """Multiply-accumulates as percent of the network's; a dash for None."""
        return "–" if macs is None else f"{100 * macs / max(1, self.macs):.1f} %"

    def headline(self) -> list[str]:
        """What there is, in two lines."""
        count = sum(box.kind == "layer" for box in self.boxes)
        parts = ((len(self.sites), "rectifier site"), (count, "layer"), (len(self.regions), "linear region"))
        there = ", ".join(f"{number} {name}{'s' * (number != 1)}" for number, name in parts)
        lines = [f"{there}; depth {self.depth}, {self.macs:,} multiply-accumulates a sample"]
        if any(site.saving is not None for site in self.sites):
            lines.append(
                f"without any rectifier: depth {self.least}, {self.macs - self.most:,} multiply-accumulates at least "
                f"({self.share(self.most)} saved)"
            )
        return lines

    def table(self) -> str:
        """The whole as plain text: a row for each site, the regions, and what would keep layers apart."""
        lines = [*self.headline(), *self.notes]
        if not self.sites:
            return "\n".join([*lines, "no rectifier: there is nothing to collapse"])
        rows: list[tuple[str, ...]] = [("site", "kind", "neurons", "fed by", "identity", "constant", "all to here")]
        for site in self.sites:
            saves = [self.share(amount) for amount in _amounts(site.saving)]
            rows.append(
                (diagram.tail(site.name, _LONGEST), site.kind, f"{site.neurons:,}", _some(site.feeding), *saves)
            )
        lines += ["", *aligned(rows, right=(2, 4, 5, 6)), "", *_LEGEND]
        cells = [
            (f"{number}", _some(region.layers), self.share(region.macs), f"read by {_some(region.read_by)}")
            for number, region in self.regions.items()
        ]
        lines += ["", "linear regions:", *aligned(cells, right=(0, 2))] if cells else []
        apart = grouped(kept for site in self.sites if site.saving is not None for kept in site.saving.barriers)
        if apart:
            lines += ["", "what keeps layers apart where a rectifier alone has become the identity:", *apart]
        said: dict[str, list[str]] = {}
        for site in self.sites:
            for note in site.notes:
                said.setdefault(note, []).append(site.name)
        return "\n".join(
            [*lines, *([""] if said else []), *(f"{_some(names)}: {note}" for note, names in said.items())]
        )

    def to_mermaid(self) -> str:
        """The network as a Mermaid flowchart: regions are boxes around layers, dotted lines what keeps layers apart."""
        return diagram.mermaid(self)

    def to_svg(self) -> str:
        """The network as a picture for itself, from top to bottom, for light and dark pages."""
        return diagram.svg(self)


_LEGEND = (
    "Multiply-accumulates saved with a rectifier alone become the identity (layers around it merge where that is exact",
    "and less work) or constant (every weight that feeds it pruned: what only it needs goes; – where the outputs would",
    "not depend on the input any more), and with it and all before it linear in the better way. These are bounds: what",
    "training and pruning reach is less, and fewer multiply-accumulates are not always less time.",
)


def inspect(model: nn.Module, example_inputs: Any, *, captured: Capture | None = None) -> Inspection:
    """Say what a network could lose: nothing is trained, measured or changed.

    Args:
        model: any module that `torch.export` can capture; its weights count as they are: what is pruned already is no
            work any more.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; shapes and dtypes matter alone.
        captured: the model's capture with these example inputs, if there is one (`Pruner.capture`).

    Raises:
        LayerCollapseError: as for `collapse`: the model does not run on the inputs, or cannot be captured.
    """
    check_example(example_inputs)
    model = unwrapped(model)
    check_values(model, example_inputs)
    with torch.inference_mode(False), evaluating(model):
        check_parameters(model)
        captured = checked_capture(model, example_inputs, captured)
        check_statistics(captured, model)
        check_buffers(captured)
        return _inspected(model, captured)


def _inspected(model: nn.Module, captured: Capture) -> Inspection:
    with on_cpu():
        net = lower(captured, model)
        feeding = {site.name: tuple(_module(name) for name in site.feeding) for site in captured.sites}
        costs = savings(net, feeding)
        unfed = prunable(model, captured).unfed
        boxes = chart(net, {site.node: site.name for site in captured.sites if site.kind == "linear"})
        sites = tuple(
            InspectedSite(
                name=site.name,
                kind=site.kind,
                neurons=site.channels,
                feeding=feeding[site.name],
                saving=costs.by_site.get(site.name),
                notes=tuple(_notes(captured, net, site, costs.by_site.get(site.name), unfed.get(site.name))),
            )
            for site in captured.sites
        )
        notes = [f"{', '.join(sorted(captured.unread))}: nothing that the outputs need reads it"] * bool(
            captured.unread
        )
    return Inspection(sites, boxes, costs.macs, costs.depth, costs.least, tuple(notes))


def _notes(captured: Capture, net: Net, site: Site, saving: Saving | None, unfed: str | None) -> list[str]:
    """What there is to say of a site."""
    if site.kind == "linear":
        return ["it was made linear by linearize: collapse takes it as exact"]
    notes = [f"nothing to prune before it: {unfed}"] if unfed else []
    if saving is None:
        why = unreplaceable(captured, net, site)
        notes.append(why or "nothing that the outputs need reads it, or its input is constant")
    if not rectifiers.BY_KIND[site.kind].piecewise_linear:
        notes.append(f"{site.kind} is not piecewise linear: without it the outputs are approximate")
    calls = net.calls()
    if often := [_module(name) for name in site.feeding if calls[name] > 1]:
        notes.append(f"{', '.join(often)} is called more than once: a merged layer needs weights of its own for a call")
    return notes


def _module(weight: str) -> str:
    """The layer that a weight belongs to."""
    return weight.rpartition(".")[0] or weight


def _amounts(saving: Saving | None) -> tuple[int | None, int | None, int | None]:
    return (None, None, None) if saving is None else (saving.identity, saving.constant, saving.together)


def _some(names: tuple[str, ...] | list[str]) -> str:
    """The first names of many."""
    more = len(names) - _NAMES
    return ", ".join(diagram.tail(name, _LONGEST) for name in names[:_NAMES]) + (
        f" and {more} more" if more > 0 else ""
    )
