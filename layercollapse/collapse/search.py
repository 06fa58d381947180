"""Which of the candidate sites collapse: all, or those with which the outputs stay within the tolerance."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from layercollapse.collapse.choice import ALL, Choice, Start, Written, choose
from layercollapse.collapse.clock import Clock
from layercollapse.collapse.decide import Candidate
from layercollapse.collapse.emit import emit
from layercollapse.collapse.forms import CHOSEN, UNCHANGED, Form, between, form, once
from layercollapse.collapse.ir import Net
from layercollapse.collapse.linearize import linearize
from layercollapse.collapse.verify import Agreement, compare
from layercollapse.errors import LayerCollapseError


@dataclass(frozen=True)
class Outcome:
    """The best form, and what led to it.

    Attributes:
        form: the form that was chosen.
        agreement: how it compares with the model on the data.
        missed: site that was tried and kept -> what the outputs differed by without it.
        times: form, or the input, -> time in ms; empty where nothing was timed.
        choices: how the regions are written that there was more than one way to write.
    """

    form: Form
    agreement: Agreement
    missed: dict[str, float]
    times: dict[str, float] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()


class _Attempt(NamedTuple):
    """A collapse with every rule applied, and how it compares with the model."""

    start: Start
    every: Written
    form: Form
    agreement: Agreement

    @property
    def error(self) -> float:
        return self.agreement.max_abs_error


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

    @cached_property
    def _device(self) -> torch.device:
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @cached_property
    def _clock(self) -> Clock | None:
        return Clock(self._device) if self.timed else None

    @cached_property
    def _shared(self) -> dict[str, nn.Parameter]:
        """Parameters of layers that did not change: one tensor in all that is built."""
        return {}

    def run(self) -> Outcome:
        """Collapse all candidates, or, where that misses the tolerance, the proven ones and then one after the other.

        Raises:
            LayerCollapseError: even the proven ones miss the tolerance.
        """
        missed = dict[str, float]()
        attempt = self._attempt(list(self.found))
        proven = [name for name in self.found if self.found[name].proven]
        if attempt.error > self.tolerance and len(proven) < len(self.found):
            del attempt  # one model less in memory while others are tried
            missed = self._missed(proven)
            gc.collect()
            attempt = self._attempt([name for name in self.found if name not in missed])
        if attempt.error > self.tolerance and len(proven) + len(missed) < len(self.found):
            missed = {name: missed.get(name, attempt.error) for name in self.found if name not in proven}
            del attempt
            attempt = self._attempt(proven)
        if attempt.error > self.tolerance:
            self._refuse_random()
            raise LayerCollapseError(
                f"tolerance: expected outputs within {self.tolerance:g} of the model's, got {attempt.error:.3g} with "
                "nothing but exact algebra; raise the tolerance if the outputs are large, or collapse in float64"
            )
        names = [name for name in self.found if name not in missed]
        if self.repad:
            del attempt
            # The tolerance has been kept by the same sites with the border as it was; now it is measured alone.
            attempt = self._attempt(names, repad=True)
        if self.timed:
            return self._fastest(attempt, missed)
        return Outcome(attempt.form, attempt.agreement, missed)

    def _refuse_random(self) -> None:
        """Raise if the model does not even agree with itself."""
        error = compare(self.model, self.model, self.data).max_abs_error
        if error > self.tolerance:
            raise LayerCollapseError(
                f"model: expected the same outputs for the same inputs, got a difference of {error:.3g} from one call "
                "in evaluation mode to the next; what is random in it must be an argument"
            )

    def _attempt(self, names: Collection[str], repad: bool = False) -> _Attempt:
        """Collapse some sites, with every rule applied."""
        base = self.base.copy()
        base.clock, base.repad = self._clock, repad
        start = Start(base, {name: self.found[name].states for name in names})
        every = start.written()
        made = form(ALL, every.net.copy(), self._device, self._shared)
        return _Attempt(start, every, made, compare(self.model, made.model, self.data))

    def _fastest(self, attempt: _Attempt, missed: dict[str, float]) -> Outcome:
        """The form that takes the least time, of those that keep within the tolerance."""
        start, every, best, agreement = attempt
        choices, net = choose(start, every, best.model, self.example_inputs, device=self._device, shared=self._shared)
        if net is None and not every.applied:
            return Outcome(best, agreement, missed, choices=choices)
        made = [best] if net is None else [form(CHOSEN, net, self._device, self._shared), best]
        race = between(self.model, made, self.example_inputs, self._device)
        times = race.times
        if race.order[0] == CHOSEN:
            other = compare(self.model, made[0].model, self.data)
            if other.max_abs_error <= self.tolerance or made[0].repadded:
                best, agreement = made[0], other
        if race.slower_than_input(best.name):
            same = form(UNCHANGED, self.base.copy(), self._device, self._shared)
            last = once(self.model, [best, same], self.example_inputs, self._device, seconds=3.0)
            times = times | last.times
            if last.slower_than_input(best.name) and times[same.name] < times[best.name]:
                best, agreement = same, compare(self.model, same.model, self.data)
        choices = tuple(replace(c, taken=best.name in (CHOSEN, c.way)) for c in choices)
        return Outcome(best, agreement, missed, times, choices)

    def _missed(self, proven: Collection[str]) -> dict[str, float]:
        """The sites without which the outputs miss the tolerance, tried one after the other, and by how much."""
        kept, missed = list(proven), {}
        for name in self.found:
            if name in proven:
                continue
            error = self._error([*kept, name])
            if error <= self.tolerance:
                kept.append(name)
            else:
                missed[name] = error
        self._shared.clear()  # weights of the layers as they came, which folding replaces
        return missed

    def _error(self, names: Collection[str]) -> float:
        """What the outputs differ by without the rectifiers of some sites; rules change that by rounding alone.

        So the layers stay as they came, and share their weights: a ResNet-50 of which five sites in ten miss takes 35 s
        instead of 125 s. Neurons of a site that stays are taken out by rules.
        """
        gc.collect()  # graphs refer to themselves: ten models of 97 MiB waited to be freed, 1,002 MiB in all
        states = {name: self.found[name].states for name in names}
        if any(self.found[name].partial for name in names):
            return self._attempt(names).error
        net = self.base.copy()
        linearize(net, states)
        return compare(self.model, emit(net, self._device, self._shared), self.data).max_abs_error
