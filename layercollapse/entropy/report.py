"""Sign entropy of neurons, from exact counts: what a probe saw, per rectifier site and neuron.

report = probe.report()
report["layer1.0.relu"].mean          # bits
report["layer1.0.relu"].collapsible   # True when the rectifier was linear for every neuron
print(report.table())
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from layercollapse._util.columns import aligned
from layercollapse.entropy.layer import STATES, LayerEntropy
from layercollapse.errors import LayerCollapseError
from layercollapse.ops.patterns import SignPatterns

_FORMAT, _VERSION = "layercollapse.entropy", 1


@dataclass(frozen=True, eq=False)
class EntropyReport:
    """The entropies of all rectifier sites of a model, in execution order: iterable, and indexed by site name."""

    layers: list[LayerEntropy]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise LayerCollapseError(f"layers: expected every site once, got {', '.join(twice)} more than once")

    def __iter__(self) -> Iterator[LayerEntropy]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, name: object) -> bool:
        return any(layer.name == name for layer in self.layers)

    def __getitem__(self, name: str) -> LayerEntropy:
        for layer in self.layers:
            if layer.name == name:
                return layer
        known = ", ".join(layer.name for layer in self.layers) or "none"
        raise LayerCollapseError(f"site: expected one of the report's sites ({known}), got {name!r}")

    @property
    def collapsible(self) -> list[str]:
        """Names of the sites without a mixed neuron."""
        return [layer.name for layer in self.layers if layer.collapsible]

    def viewed(self, zeros: str = "ignore", average: str = "all") -> EntropyReport:
        """The same counts under other conventions: see `LayerEntropy` for the arguments."""
        return EntropyReport([replace(layer, zeros=zeros, average=average) for layer in self.layers])

    def merge(self, other: EntropyReport) -> EntropyReport:
        """A report over the data of both: counts and patterns add. The conventions and the order are this report's.

        Raises:
            LayerCollapseError: the reports have not the same sites, kinds or numbers of neurons, or only one has
                patterns.
        """
        theirs = {layer.name: layer for layer in other.layers}
        alone = sorted(theirs.keys() ^ {layer.name for layer in self.layers})
        if alone:
            raise LayerCollapseError(f"other: expected a report of the same sites, got {', '.join(alone)} in one only")
        for layer in self.layers:
            twin = theirs[layer.name]
            if (twin.kind, twin.counts.shape) != (layer.kind, layer.counts.shape):
                raise LayerCollapseError(
                    f"other: expected site {layer.name!r} as {layer.kind} with counts {tuple(layer.counts.shape)}, "
                    f"got {twin.kind} with {tuple(twin.counts.shape)}"
                )
        return EntropyReport([_added(layer, theirs[layer.name]) for layer in self.layers])

    def to_json(self) -> str:
        """The report as text, without loss: the counts are integers. `from_json` reads it back."""
        layers = [
            {"name": x.name, "kind": x.kind, "zeros": x.zeros, "average": x.average, "counts": x.counts.tolist()}
            | ({} if x.patterns is None else {"patterns": _written(x.patterns)})
            for x in self.layers
        ]
        return json.dumps({"format": _FORMAT, "version": _VERSION, "layers": layers})

    @classmethod
    def from_json(cls, text: str | bytes) -> EntropyReport:
        """Read what `to_json` wrote.

        Raises:
            LayerCollapseError: the text is cut off, is something else, or comes from a newer version.
        """
        try:
            data = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise LayerCollapseError(f"text: expected the JSON of an entropy report, got {error}") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise LayerCollapseError(f'text: expected JSON with "format": "{_FORMAT}", got something else')
        if data.get("version") != _VERSION:
            raise LayerCollapseError(f"text: expected version {_VERSION}, got {data.get('version')!r}")
        layers = data.get("layers")
        if not isinstance(layers, list):
            raise LayerCollapseError(f"layers: expected a list, got {type(layers).__name__}")
        return cls([_layer_from(entry) for entry in layers])

    def table(self) -> str:
        """The report as a plain text table, entropies in bits."""
        head: tuple[str, ...] = ("site", "kind", "neurons", "samples", "entropy", *STATES)
        rows: list[tuple[str, ...]] = [
            (x.name, x.kind, f"{x.neurons:,}", f"{x.samples:,}", f"{x.mean:.4f}", *(f"{x.count(s):,}" for s in STATES))
            for x in self.layers
        ]
        if any(x.patterns is not None for x in self.layers):
            head += ("patterns", "their entropy")
            rows = [(*row, *_pattern_cells(x.patterns)) for row, x in zip(rows, self.layers, strict=True)]
        done = self.collapsible
        note = f"{len(done)} of {len(self)} sites have no mixed neuron" + (f": {', '.join(done)}" if done else "")
        return "\n".join([*aligned([head, *rows], right=range(2, len(head)), rule=True), "", note])


def _pattern_cells(patterns: SignPatterns | None) -> tuple[str, str]:
    """How many patterns and how many bits; "~" before estimates."""
    if patterns is None:
        return "", ""
    about = "" if patterns.exact else "~"
    return f"{about}{patterns.distinct:,}", f"{about}{patterns.entropy:.4f}"


def _added(one: LayerEntropy, other: LayerEntropy) -> LayerEntropy:
    if one.patterns is None or other.patterns is None:
        if one.patterns is not other.patterns:
            raise LayerCollapseError(f"other: expected patterns in both reports or in none, got one at {one.name!r}")
        return replace(one, counts=one.counts + other.counts)
    return replace(one, counts=one.counts + other.counts, patterns=one.patterns.merge(other.patterns))


def _written(patterns: SignPatterns) -> dict[str, Any]:
    return {
        "rows": patterns.rows,
        "capacity": patterns.capacity,
        "hashes": patterns.hashes.tolist(),
        "counts": patterns.counts.tolist(),
    }


def _patterns_from(entry: Any, name: str, channels: int) -> SignPatterns | None:
    if entry is None:
        return None
    keys = ("rows", "capacity", "hashes", "counts")
    lists = isinstance(entry, dict) and all(key in entry for key in keys)
    numbers = [*entry["hashes"], *entry["counts"], entry["rows"], entry["capacity"]] if lists else [None]
    if not all(type(number) is int and -(2**63) <= number < 2**63 for number in numbers):
        raise LayerCollapseError(f"patterns of {name!r}: expected integers and lists of them, got {str(entry)[:80]}")
    hashes, counts = (torch.tensor(entry[key], dtype=torch.int64) for key in ("hashes", "counts"))
    return SignPatterns.of(hashes, counts, entry["rows"], channels, entry["capacity"])


def _layer_from(entry: Any) -> LayerEntropy:
    keys = ("name", "kind", "zeros", "average", "counts")
    if not isinstance(entry, dict) or any(key not in entry for key in keys):
        raise LayerCollapseError(f"layers: expected objects with {', '.join(keys)}, got {str(entry)[:80]}")
    name, rows = entry["name"], entry["counts"]
    integers = isinstance(rows, list) and all(
        isinstance(row, list) and all(type(cell) is int and 0 <= cell < 2**63 for cell in row) for row in rows
    )
    if not isinstance(name, str) or not isinstance(entry["kind"], str) or not integers:
        raise LayerCollapseError(
            f"layers: expected names as text and counts as rows of integers, got {str(entry)[:80]}"
        )
    columns = {len(row) for row in rows}
    if len(columns) > 1:
        raise LayerCollapseError(f"counts of {name!r}: expected rows of one length, got {sorted(columns)}")
    counts = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), columns.pop() if columns else 4)
    patterns = _patterns_from(entry.get("patterns"), name, len(rows))
    return LayerEntropy(name, entry["kind"], counts, entry["zeros"], entry["average"], patterns)
