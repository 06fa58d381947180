"""What became of every site, and why, once the search is over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
        form = self.outcome.form
        name, missed, left = site.name, self.outcome.missed, form.bending
        tried = self.found.get(name)
        one = None if name in missed else tried
        removed = site.channels - left.get(name, 0)

        def result(status: str, guarantee: str, reason: str) -> SiteResult:
            return SiteResult(name, site.kind, status, guarantee, reason, site.channels, removed)

        if form.name == UNCHANGED and one is not None:
            slower = "but the network was slower in every way to write it that makes use of that"
            return SiteResult(name, site.kind, "kept", "", f"{_told(one.known)}; {slower}", site.channels, 0)
        if one is not None and not one.partial and name not in left:
            return result("collapsed", _weakest(guarantee for guarantee, _ in one.known), _told(one.known))
        if one is not None and not one.partial:
            return result("kept", "", f"{_told(one.known)}; but what is around it was faster with it")
        if name in self.read and name not in left:
            reason = "nothing that the outputs need reads it once other sites have collapsed"
            if one is not None:
                reason = f"{_told(one.known)}; nothing that the outputs need reads its other neurons"
            return result("collapsed", self._weakest(), reason)
        removed = removed if name in left else 0
        if tried is not None and tried.proven and name in missed:
            without = f"but without that the outputs differ by {missed[name]}"
            return result("kept", "", f"{_told(tried.known)}; {without}")
        reason = why_kept(self.captured, site, self.layers.get(name), missed.get(name), name in self.read)
        if removed:
            carried = form.carried.get(name, 0)
            bypass = f", {carried} of them carried by a linear bypass" if carried else ""
            reason += f"; {removed} of {site.channels} neurons are gone{bypass}"
        used = [] if one is None else one.known if name in form.carried else one.flat
        if one is not None and one.straight[1] and name not in form.carried:
            reason += f"; {one.straight[1]}: to carry them beside the rectifier was not possible, or more work"
        if used:
            return result("partial", _weakest(guarantee for guarantee, _ in used), f"{_told(used)}; {reason}")
        return result("kept", "", reason)

    def _weakest(self) -> str:
        """The weakest guarantee of anything that was used."""
        form, missed = self.outcome.form, self.outcome.missed
        used = [
            guarantee
            for name, one in self.found.items()
            if name not in missed
            for guarantee, _ in (one.flat if name in form.bending and name not in form.carried else one.known)
        ]
        return _weakest(used)


def _weakest(guarantees: Iterable[str]) -> str:
    return max(guarantees, key=GUARANTEES.index, default="exact")


def _told(known: Iterable[tuple[str, str]]) -> str:
    return "; ".join(reason for _, reason in known)
