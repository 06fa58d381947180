"""What a run writes down: every step, the choice, the comparison. `run.json` is this record, nothing more.

The report and `metrics.json` are made from the record alone, so both can be rebuilt without the model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layercollapse._util.files import read_json, write_json
from layercollapse.compiler.analysis.outline import Part
from layercollapse.errors import LayerCollapseError
from layercollapse.ops.patterns import SignPatterns

FILE = "run.json"
METRICS_FILE = "metrics.json"
BINS = 10


@dataclass
class Pieces:
    """The sign patterns of a site: how many, their entropy in bits, and whether these are exact."""

    distinct: int
    entropy: float
    exact: bool

    @classmethod
    def of(cls, patterns: SignPatterns) -> Pieces:
        """What there is to say of patterns that were counted."""
        return cls(patterns.distinct, patterns.entropy, patterns.exact)


def histogram(entropy: Tensor) -> list[int]:
    """How many neurons have 0 bits, and how many are in each of `BINS` bins of equal width above, the last open.

    Args:
        entropy: bits, (C,).
    """
    bins = (entropy * BINS).ceil().clamp(0, BINS).long()
    return torch.bincount(bins, minlength=BINS + 1).tolist()


@dataclass
class Step:
    """One training and what was measured after it; step 0 is the dense network.

    Attributes:
        step: number of prunings before it.
        density: kept / prunable weights.
        top1_validation: what `evaluate` returned, in percent.
        sites_collapsed: sites without a mixed neuron.
        entropy: mean bits per neuron, one number per site in the order of `Record.sites`.
        mixed: neurons that are still non-linear, per site.
        seconds: wall time of the step.
        emptied: sites that lost the last of their weights in the pruning before it.
        guarded: sites at which that kept weights, as the output would not have depended on the input without.
        patterns: the sign patterns, per site; empty if they were not counted.
        linear: sites that were made linear.
        histograms: neurons by entropy, per site; see `histogram`.
    """

    step: int
    density: float
    top1_validation: float
    sites_collapsed: int
    entropy: list[float]
    mixed: list[int]
    seconds: float
    emptied: int = 0
    guarded: list[str] = field(default_factory=list)
    patterns: list[Pieces] = field(default_factory=list)
    linear: list[str] = field(default_factory=list)
    histograms: list[list[int]] = field(default_factory=list)


@dataclass
class Side:
    """One side of the comparison: `top1` in percent, `macs` per sample, `file_mib`, `latency_ms` by batch size."""

    top1: float
    depth: int
    parameters: int
    macs: int
    file_mib: float
    latency_ms: dict[str, float]


@dataclass
class Verdict:
    """What became of a site: `status` is "collapsed", "partial" or "kept", `reason` says why."""

    name: str
    kind: str
    status: str
    guarantee: str
    reason: str


@dataclass
class Region:
    """A part of the network that there was more than one variant of: the `variant` taken; `times` in ms by variant."""

    layers: list[str]
    variant: str
    times: dict[str, float]


@dataclass
class Record:
    """A run from its settings to the comparison; the later fields stay empty until the run gets there.

    `repadded`, `forms`, `form`, `parts_before` and `parts_after` are what `CollapseResult.repadded`, `latency` (ms),
    `form`, `parts_before` and `parts_after` were; `refitted` has a line for each of `CollapseResult.refitted`. `failed`
    says what of the comparison at the end did not work. `retrained` is how often the collapsed network was trained.
    """

    settings: dict[str, Any]
    environment: dict[str, str]
    sites: list[str] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    chosen: int | None = None
    stopped: str = ""
    interrupted: bool = False
    top1_split: str = "test"
    dense_top1: float | None = None
    before: Side | None = None
    after: Side | None = None
    max_abs_error: float | None = None
    identical: int | None = None
    compared: int | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    repadded: list[str] = field(default_factory=list)
    refitted: list[str] = field(default_factory=list)
    retrained: int = 0
    forms: dict[str, float] = field(default_factory=dict)
    form: str = ""
    regions: list[Region] = field(default_factory=list)
    parts_before: list[Part] = field(default_factory=list)
    parts_after: list[Part] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def choice(self) -> str:
        """Why the dense network was collapsed though there are pruned ones; empty if a pruned one was."""
        pruned = self.steps[1:]
        if not pruned or self.chosen != 0:
            return ""
        dense, budget = self.steps[0].top1_validation, self.settings["max_drop"]
        best = max(pruned, key=lambda step: step.top1_validation)
        if best.top1_validation < dense - budget:
            return (
                f"the dense network was collapsed: every pruned one is below the accuracy budget of {budget:g} points "
                f"(the best, step {best.step}, by {dense - best.top1_validation:.2f} points); allow more (max_drop), "
                "prune less at a step (amount, max_layer_share) or train longer"
            )
        return (
            "the dense network was collapsed: no pruned one within the accuracy budget, whose weights are still there, "
            "has more linear sites, or as many with a better accuracy"
        )

    @property
    def notes(self) -> list[str]:
        """What is to be known of the run, in sentences."""
        notes = [self.choice] if self.choice else []
        for step in self.steps:
            if step.emptied > max(1, len(self.sites) // 4):
                notes.append(
                    f"step {step.step} took the last weights of {step.emptied} of {len(self.sites)} sites at once; "
                    "max_layer_share caps what a site loses in a step"
                )
            if step.guarded:
                more = f" and {len(step.guarded) - 3} more" if len(step.guarded) > 3 else ""
                notes.append(
                    f"step {step.step} kept weights at {', '.join(step.guarded[:3])}{more}: without, an output would "
                    "not depend on the input"
                )
        return notes + self.failed

    @property
    def sites_collapsed(self) -> int:
        """Sites that the collapsed model no longer has."""
        return sum(verdict.status == "collapsed" for verdict in self.verdicts)

    def save(self, folder: Path) -> None:
        """Write `run.json`, and `metrics.json` where there is a comparison; that of an earlier state goes."""
        write_json(folder / FILE, asdict(self))
        if self.before and self.after:
            write_json(folder / METRICS_FILE, self.metrics())
        else:
            (folder / METRICS_FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path, argument: str = "run") -> Record:
        """Read the record of a run folder.

        Raises:
            LayerCollapseError: no run there, or a damaged `run.json`.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise LayerCollapseError(f"{argument}: expected a folder with {FILE} in it, got {folder}")
        raw = read_json(path, argument)
        try:
            raw["steps"] = [Step(**step) for step in raw["steps"]]
            for step in raw["steps"]:
                step.patterns = [Pieces(**pieces) for pieces in step.patterns]
            raw["verdicts"] = [Verdict(**verdict) for verdict in raw["verdicts"]]
            raw["regions"] = [Region(**region) for region in raw.get("regions", [])]
            for parts in ("parts_before", "parts_after"):
                raw[parts] = [Part(**part) for part in raw.get(parts, [])]
            for side in ("before", "after"):
                raw[side] = raw[side] and Side(**raw[side])
            return cls(**raw)
        except (KeyError, TypeError) as error:
            raise LayerCollapseError(f"{argument}: expected a record of this version in {path}: {error}") from error

    def metrics(self) -> dict[str, Any]:
        """The contents of `metrics.json`; call it only when there is a comparison."""
        assert self.before is not None
        assert self.after is not None
        keys = ("step", "density", "top1_validation", "sites_collapsed")
        return {
            "sites_total": len(self.sites),
            "sites_collapsed": self.sites_collapsed,
            "max_abs_error": self.max_abs_error,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "steps": [{key: getattr(step, key) for key in keys} for step in self.steps],
        }
