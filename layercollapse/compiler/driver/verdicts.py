"""What became of every site, and why, once the search is over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from layercollapse.compiler.driver.candidates import GUARANTEES, Candidate, why_kept
from layercollapse.compiler.driver.outcome import Outcome
from layercollapse.compiler.driver.result import SiteResult
from layercollapse.compiler.tuning.variants import Variant
from layercollapse.entropy.layer import LayerEntropy
from layercollapse.graph.capture import Capture, Site


@dataclass(frozen=True)
class Verdicts:
    """What became of the sites of a model.

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
        form = self.outcome.form
        name, missed, left = site.name, self.outcome.missed, form.bending
        tried = self.found.get(name)
        one = None if name in missed else tried
        removed = site.channels - left.get(name, 0)

        def result(status: str, guarantee: str, reason: str, mixed: int = 0) -> SiteResult:
            return SiteResult(name, site.kind, status, guarantee, reason, site.channels, removed, mixed)

        fitted = next((one for one in self.outcome.refitted if name in one.sites), None)
        if fitted is not None:
            had = "it was made linear by linearize" if one is None else one.reason
            reason = f"{had}; the layers around it are fitted anew (R² {fitted.r2:.3f})"
            return SiteResult(name, site.kind, "collapsed", "refitted", reason, site.channels, site.channels)
        if site.kind == "linear":
            reason = "it was made linear by linearize, and the model trained or measured so"
            return SiteResult(name, site.kind, "collapsed", "exact", reason, site.channels, site.channels)
        if form.name == Variant.UNCHANGED and one is not None:
            slower = "but the network was slower in every way to write it that makes use of that"
            return SiteResult(name, site.kind, "kept", "", f"{one.reason}; {slower}", site.channels, 0)
        if one is not None and not one.partial and name not in left:
            return result("collapsed", one.guarantee, one.reason)
        if one is not None and not one.partial:
            return result("kept", "", f"{one.reason}; but what is around it was faster with it")
        if name in self.read and name not in left:
            reason = "nothing that the outputs need reads it once other sites have collapsed"
            if one is not None:
                reason = f"{one.reason}; nothing that the outputs need reads its other neurons"
            return result("collapsed", self._weakest(), reason)
        removed = removed if name in left else 0
        if tried is not None and tried.proven and name in missed:
            without = f"but without that the outputs differ by {missed[name]}"
            return result("kept", "", f"{tried.reason}; {without}")
        layer = self.layers.get(name)
        reason = why_kept(self.captured, site, layer, missed.get(name), name in self.read)
        mixed = layer.mixed if layer is not None and name in self.read else 0
        if removed:
            reason += f"; {removed} of {site.channels} neurons are gone"
        if one is not None:
            return result("partial", one.guarantee, f"{one.reason}; {reason}", mixed)
        return result("kept", "", reason, mixed)

    def _weakest(self) -> str:
        """The weakest guarantee of anything that was used."""
        used = (one.guarantee for name, one in self.found.items() if name not in self.outcome.missed)
        return max(used, key=GUARANTEES.index, default="exact")
