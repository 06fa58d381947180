"""What became of every site, and why, once the search is over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from layercollapse.collapse.decide import GUARANTEES, Candidate, why_kept
from layercollapse.collapse.forms import UNCHANGED
from layercollapse.collapse.result import SiteResult
from layercollapse.collapse.search import Outcome
from layercollapse.counts import LayerEntropy
from layercollapse.graph import Capture, Site


@dataclass(frozen=True)
class Verdicts:
    """Of the sites of a model.

    Attributes:
        captured: the model.
        found: the candidates there were.
        outcome: the form that was chosen.
        read: the sites whose rectifier can be replaced.
        layers: what the report counted, by site.
    """

    captured: Capture
    found: Mapping[str, Candidate]
    outcome: Outcome
    read: Collection[str]
    layers: Mapping[str, LayerEntropy]

    def of(self, site: Site) -> SiteResult:
        """What became of a site."""
        name, missed, left = site.name, self.outcome.missed, self.outcome.form.bending
        one = None if name in missed else self.found.get(name)
        removed = site.channels - left.get(name, 0)

        def result(status: str, guarantee: str, reason: str) -> SiteResult:
            return SiteResult(name, site.kind, status, guarantee, reason, site.channels, removed)

        if self.outcome.form.name == UNCHANGED and one is not None:
            slower = "but the network was slower in every way to write it that makes use of that"
            return SiteResult(name, site.kind, "kept", "", f"{one.reason}; {slower}", site.channels, 0)
        if one is not None and not one.partial:
            return result("collapsed", one.guarantee, one.reason)
        if name in self.read and name not in left:
            used = [other.guarantee for key, other in self.found.items() if key not in missed]
            reason = "nothing that the outputs need reads it once other sites have collapsed"
            return result("collapsed", max(used, key=GUARANTEES.index, default="exact"), reason)
        removed = removed if name in left else 0
        reason = why_kept(self.captured, site, self.layers.get(name), missed.get(name), name in self.read)
        if removed:
            reason += f"; {removed} of {site.channels} neurons are gone"
        if one is None:
            return result("kept", "", reason)
        return result("partial", one.guarantee, f"{one.reason}; {reason}")
