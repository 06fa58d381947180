"""What a collapse says about itself, in lines: the outcome, every site, what stays two layers and why, the times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layercollapse.compiler.analysis.obstacles import grouped
from layercollapse.compiler.backend.modules import in_words
from layercollapse.compiler.tuning.timer import MARGIN
from layercollapse.compiler.tuning.variants import Variant
from layercollapse.graph.prunable import by_reason

if TYPE_CHECKING:
    from layercollapse.compiler.driver.result import CollapseResult
    from layercollapse.compiler.tuning.autotune import Choice

_SHOWN = 12  # parts that were timed


def explain(result: CollapseResult) -> str:
    """See `CollapseResult.explain`."""
    width = max((len(site.name) for site in result.sites), default=0)
    lines = [*_outcome(result), *result.notes, *_timing(result), *_growth(result)]
    lines += [
        f"{site.name:<{width}}  {site.kind:<10}  {site.status:<9}  "
        f"{(site.guarantee + ': ') if site.guarantee else ''}{site.reason}"
        for site in result.sites
    ]
    if not result.notes and any(site.mixed for site in result.sites if site.status == "kept"):
        lines.append("what is mixed collapses once none of its neurons changes sign: prune more before it, train again")
    stay = [site.name for site in result.sites if site.status != "collapsed"]
    unfed = {name: result.unfed[name] for name in stay if name in result.unfed}
    lines += [f"nothing to prune before {line}" for line in by_reason(unfed)]
    lines += grouped(result.kept_layers)
    lines += [
        f"{pair}: merged with the padding moved to the first: approximate at the border (the outputs differ by "
        f"{result.max_abs_error:.3g}); train the model once more"
        for pair in result.repadded
    ]
    if result.refitted:
        lines.append(
            f"replaced by layers that were fitted on the data (the outputs differ by {result.max_abs_error:.3g}); "
            "train the model once more:"
        )
        lines += map(str, result.refitted)
    if result.fixed_sizes:
        shapes = ", ".join(f"{name} {in_words(sizes)}" for name, sizes in result.fixed_sizes.items())
        lines.append(f"input sizes fixed: {shapes}: the model's Python computes with them, and the graph has those")
    return "\n".join([*lines, *_choices(result)])


def _outcome(result: CollapseResult) -> list[str]:
    """How many sites collapsed, and the sizes before and after."""
    before, after = result.before, result.after
    partial = sum(site.status == "partial" for site in result.sites)
    some = f", {partial} with fewer neurons" if partial else ""
    collapsed = f"{len(result.collapsed)} of {len(result.sites)} rectifiers collapsed"
    lines = [
        f"{collapsed}{some}; depth {before.depth} → {after.depth}",
        f"parameters {before.parameters:,} → {after.parameters:,}; multiply-accumulates on the example inputs "
        f"{before.macs:,} → {after.macs:,}",
    ]
    if result.hardly_varies:
        lines.append(
            f"the model's outputs hardly depend on its input: they vary by {result.spread:.3g} over the data; it is to "
            "be trained, or pruned less"
        )
    return lines


def _growth(result: CollapseResult) -> list[str]:
    """Why there are more parameters, if there are."""
    if result.after.parameters <= result.before.parameters:
        return []
    if result.unshared:
        layers = ", ".join(result.unshared)
        return [f"more parameters: {layers}: called more than once, and every call has weights of its own now"]
    if result.after.macs < result.before.macs:
        return ["more parameters: a merged layer can have more weights and less work where it works on fewer positions"]
    return ["more parameters: merged layers have more weights than the layers that they replace"]


def _choices(result: CollapseResult) -> list[str]:
    """A line for every part that was timed; one for all that are the same. Those not written as every other first."""
    parts: dict[tuple[str, ...], list[Choice]] = {}
    for choice in result.regions:
        parts.setdefault(choice.layers, []).append(choice)
    same: dict[str, list[tuple[str, ...]]] = {}
    for layers, choices in parts.items():
        same.setdefault("; ".join(map(_times, choices)), []).append(layers)
    lines = []
    for times, alike in list(same.items())[:_SHOWN]:
        more = f" and {len(alike) - 1} more part{'s' * (len(alike) > 2)} like it" if len(alike) > 1 else ""
        lines.append(f"{', '.join(alike[0])}{more}: {times}")
    if len(same) > _SHOWN:
        lines.append(f"and {len(same) - _SHOWN} more parts that were timed: see regions")
    return ["parts of the network alone, in each way to write them, the chosen first:", *lines] if lines else []


def _times(choice: Choice) -> str:
    """The ways to write a part, the best first, and whether it is written so."""
    first = sorted(choice.times.items(), key=lambda item: item[0] != choice.variant)
    times = ", ".join(f"{way}: {time:.3f} ms" for way, time in first)
    return times if choice.taken else f"{times} (not taken: the network as a whole was not faster so)"


def _timing(result: CollapseResult) -> list[str]:
    before, after = result.latency_before, result.latency_after
    if before is None or after is None:
        return []
    outcome = f"{before / max(after, 1e-9):.1f}x faster" if after < before else "slower"
    if abs(after - before) <= MARGIN * before:
        outcome = f"no faster: a difference below {MARGIN:.0%} is within the noise"
    elif outcome == "slower":
        outcome = "slower; no other way to write it was faster, the layers as they came included"
    lines = [f"latency on the example inputs: {before:.3f} ms → {after:.3f} ms ({outcome}), with {result.form}"]
    others = {name: time for name, time in result.latency.items() if name not in (Variant.INPUT, result.form)}
    return lines + [f"also timed: {name}: {time:.3f} ms" for name, time in others.items()]
