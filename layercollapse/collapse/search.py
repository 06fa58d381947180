"""Which of the candidate sites collapse: all, or those with which the outputs stay within the tolerance."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layercollapse.collapse.clock import Clock
from layercollapse.collapse.decide import Candidate
from layercollapse.collapse.forms import ALL, Form, Race, again, forms, race, unchanged
from layercollapse.collapse.ir import Net
from layercollapse.collapse.verify import Agreement, compare
from layercollapse.errors import LayerCollapseError


@dataclass(frozen=True)
class Outcome:
    """The best form, and what led to it.

    Attributes:
        form: the form that was chosen.
        agreement: how it compares with the model on the data.
        missed: site that was tried and kept -> what the outputs differed by without it.
        race: the times; None where none were taken.
    """

    form: Form
    agreement: Agreement
    missed: dict[str, float]
    race: Race | None


@dataclass(frozen=True)
class Search:
    """Attempts to collapse one model.

    Attributes:
        model: what came.
        base: the same as lowered.
        found: the candidate sites.
        data: batches to compare on; gone through more than once.
        example_inputs: what to time with.
        tolerance: largest difference of any output that is accepted.
        timed: whether time decides, or multiply-accumulates.
        repad: whether layers may merge that differ at the border then.
    """

    model: nn.Module
    base: Net
    found: Mapping[str, Candidate]
    data: Iterable[Any]
    example_inputs: Any
    tolerance: float
    timed: bool
    repad: bool

    def run(self) -> Outcome:
        """Collapse all candidates, or, where that misses the tolerance, the proven ones and then one after the other.

        Raises:
            LayerCollapseError: even the proven ones miss the tolerance.
        """
        parameter = next(self.model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        clock = Clock(device) if self.timed else None

        def attempt(
            names: Collection[str], alternatives: bool = False, repad: bool = False
        ) -> tuple[list[Form], Agreement]:
            states = {name: self.found[name].states for name in names}
            options: Any = {"alternatives": alternatives, "repad": repad}
            made = forms(self.base, states, clock=clock, device=device, **options)
            return made, compare(self.model, made[0].model, self.data)

        names, missed = list(self.found), dict[str, float]()
        made, agreement = attempt(names, self.timed and not self.repad)
        proven = [name for name in names if self.found[name].proven]
        if agreement.max_abs_error > self.tolerance and len(proven) < len(names):
            made.clear()  # one model less in memory while others are tried

            def error(tried: Collection[str]) -> float:
                gc.collect()  # graphs refer to themselves: ten models of 97 MiB waited to be freed, 1,002 MiB in all
                return attempt(tried)[1].max_abs_error

            names, missed = self._one_by_one(proven, error)
            gc.collect()
            made, agreement = attempt(names, self.timed and not self.repad)
        if agreement.max_abs_error > self.tolerance:
            raise LayerCollapseError(
                f"tolerance: expected outputs within {self.tolerance:g} of the model's, got "
                f"{agreement.max_abs_error:.3g} with nothing but exact algebra; raise the tolerance if the outputs "
                "are large, or collapse in float64"
            )
        if self.repad:
            made.clear()
            # The tolerance has been kept by the same sites with the border as it was; now it is measured alone.
            made, agreement = attempt(names, self.timed, repad=True)
        if not self.timed or not any(form.changed for form in made):
            return Outcome(made[0], agreement, missed, None)
        times = race(self.model, made, self.example_inputs, device)
        by_name = {form.name: form for form in made}
        best = made[0]
        for name in times.order[: times.order.index(ALL)]:
            other = compare(self.model, by_name[name].model, self.data)
            if other.max_abs_error <= self.tolerance or by_name[name].repadded:
                best, agreement = by_name[name], other
                break
        if times.slower:
            same = unchanged(self.base, device)
            times = again(times, self.model, [best, same], self.example_inputs, device)
            if times.slower_than_input(best.name) and times.times[same.name] < times.times[best.name]:
                best, agreement = same, compare(self.model, same.model, self.data)
        return Outcome(best, agreement, missed, times)

    def _one_by_one(
        self, proven: Collection[str], error: Callable[[Collection[str]], float]
    ) -> tuple[list[str], dict[str, float]]:
        """The sites that keep within the tolerance, and for every other the error that it made."""
        kept, missed = list(proven), {}
        for name in self.found:
            if name in proven:
                continue
            difference = error([*kept, name])
            if difference <= self.tolerance:
                kept.append(name)
            else:
                missed[name] = difference
        return kept, missed
