"""Which of the candidate sites collapse, and which layers merge: all, or those with which the outputs keep the
tolerance.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.backend.emit import emit
from layercollapse.compiler.driver.bisect import (
    Plan,
    Trials,
    as_they_came,
    merging,
    not_merged,
    unmerged,
    unmerged_at,
)
from layercollapse.compiler.driver.candidates import Candidate
from layercollapse.compiler.driver.outcome import Outcome
from layercollapse.compiler.driver.refit import refit
from layercollapse.compiler.frontend.lower import lower, written_anew
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.passes.context import PassContext
from layercollapse.compiler.passes.linearize import Known, replace_neurons
from layercollapse.compiler.tuning.autotune import Start, Written, choose
from layercollapse.compiler.tuning.timer import CostModel
from layercollapse.compiler.tuning.variants import PASSES, Form, Variant, cheaper, form, once, race
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.agreement import Agreement, compare
from layercollapse.graph.capture import Capture
from layercollapse.graph.linear_sites import rectified

# Networks that are tried at most where layers are rolled back.
_TRIALS = 24


class _Attempt(NamedTuple):
    """A collapse with every pass applied, and how it compares with the model."""

    start: Start
    every: Written
    form: Form
    agreement: Agreement


@dataclass(frozen=True)
class Search:
    """Attempts to collapse one model.

    Attributes:
        model: what came.
        captured: the same as a graph.
        base: that as lowered.
        found: the candidate sites.
        data: batches to compare on; gone through more than once.
        example_inputs: what to time with.
        tolerance: largest difference of any output that is accepted.
        device: where the model is.
        cost: what decides; None: multiply-accumulates, and nothing is timed.
        mode: see `collapse`.
        min_r2: see `collapse`.
    """

    model: nn.Module
    captured: Capture
    base: Net
    found: Mapping[str, Candidate]
    data: Iterable[Any]
    example_inputs: Any
    tolerance: float
    device: torch.device
    cost: CostModel | None
    mode: str
    min_r2: float

    @cached_property
    def _layers(self) -> dict[str, str]:
        """The captured nodes that passes may touch, and the names of what they are."""
        return written_anew(self.base)

    @cached_property
    def _shared(self) -> dict[str, Tensor]:
        """Parameters of layers that did not change: one tensor in all that is built."""
        return {}

    def run(self) -> Outcome:
        """Collapse all candidates; where that misses the tolerance, only the sites and the layers that keep it.

        Raises:
            LayerCollapseError: the tolerance is missed even with nothing removed or merged.
        """
        names, plan, missed = list(self.found), Plan(), dict[str, str]()
        attempt = self._attempt(names, plan)
        back: tuple[Kept, ...] = ()
        if not self._keeps(attempt.agreement):
            agreement = attempt.agreement
            del attempt  # one model less in memory while others are tried
            self._refuse_random()
            missed = self._missed()
            names = [name for name in self.found if name not in missed]
            if missed:
                agreement = self._tried(names, plan)
            if not self._keeps(agreement):
                plan, back, more = self._rolled_back(names, agreement)
                missed |= more
                names = [name for name in names if name not in more]
            gc.collect()
            attempt = self._attempt(names, plan)
            if not self._keeps(attempt.agreement):
                miss = attempt.agreement.miss(self.tolerance)
                missed |= dict.fromkeys(names, miss)
                back = tuple(as_they_came([([*self._layers], miss)], self._layers))
                names, plan = [], Plan(frozenset(self._layers), unmerged)
                del attempt
                attempt = self._attempt(names, plan)
        # By the tolerance alone: where outputs vary by little, what is left is the rounding of the same operations.
        if attempt.agreement.max_abs_error > self.tolerance:
            raise LayerCollapseError(
                f"tolerance: expected outputs within {self.tolerance:g} of the model's, got "
                f"{attempt.agreement.max_abs_error:.3g} with nothing removed or merged: the same operations gave other "
                "outputs"
            )
        if self.mode == "repad":
            del attempt
            # The tolerance has been kept by the same sites with the border as it was; now it is measured alone.
            attempt = self._attempt(names, plan, repad=True)
        outcome = self._fastest(attempt, missed, back)
        return self._refitted(outcome, names, plan) if self.mode == "refit" else outcome

    def _refitted(self, exact: Outcome, names: Collection[str], plan: Plan) -> Outcome:
        """The network with fitted layers, made of the exact collapse, if it is cheaper; no tolerance judges these."""
        fitted = refit(
            self.model,
            self._lowered(plan.untouched),
            self._known(names),
            self.data,
            least=self.min_r2,
            cost=self.cost,
            device=self.device,
            sites={site.node: site.name for site in self.captured.sites},
        )
        exact = replace(exact, rolled_back=(*exact.rolled_back, *fitted.kept))
        if not fitted.regions:
            return exact
        attempt = self._attempt(names, plan, fitted.net)
        outcome = self._fastest(attempt, exact.missed, exact.rolled_back, judged=False)
        if outcome.form.name != Variant.UNCHANGED and cheaper(outcome.form, exact.form, self.example_inputs, self.cost):
            return replace(outcome, refitted=fitted.regions)
        reason = "not refitted: the network as a whole was no faster with fitted layers"
        back = (Kept((one.layers[0], one.layers[-1]), reason) for one in fitted.regions)
        return replace(exact, rolled_back=(*exact.rolled_back, *back))

    def _refuse_random(self) -> None:
        """Raise if the model does not even agree with itself."""
        error = compare(self.model, self.model, self.data).max_abs_error
        if error > self.tolerance:
            raise LayerCollapseError(
                f"model: expected the same outputs for the same inputs, got a difference of {error:.3g} from one call "
                "in evaluation mode to the next; what is random in it must be an argument"
            )

    def _attempt(self, names: Collection[str], plan: Plan, base: Net | None = None, repad: bool = False) -> _Attempt:
        """Collapse some sites, with every pass applied that is not left out, of the network as lowered or of `base`."""
        base = self._lowered(plan.untouched) if base is None else base
        start = Start(base, self._known(names), self.cost, repad, plan.left_out)
        every = start.written()
        written = form(Variant.ALL, every.net.copy(), every.context, self.device, self._shared)
        return _Attempt(start, every, written, compare(self.model, written.model, self.data))

    def _fastest(
        self, attempt: _Attempt, missed: dict[str, str], back: tuple[Kept, ...], judged: bool = True
    ) -> Outcome:
        """The form that takes the least time, of those that keep within the tolerance where that is judged."""
        (start, every, best, agreement), cost = attempt, self.cost
        if cost is None:
            return Outcome(best, agreement, missed, back)
        choices, chosen = choose(start, every, best.model, self.example_inputs, device=self.device, shared=self._shared)
        if judged and chosen is None and not every.applied:
            return Outcome(best, agreement, missed, back, choices=choices)
        forms = [best]
        if chosen is not None:
            forms = [form(Variant.CHOSEN, chosen.net, chosen.context, self.device, self._shared), best]
        models = {Variant.INPUT: self.model, **{one.name: one.model for one in forms}}
        with rectified(self.model):  # what makes calls of a live model linear takes time of its own
            timed = race(models, self.example_inputs, cost, forms[0].name, 1.0)
        times = timed.times
        if timed.order[0] == Variant.CHOSEN:
            other = compare(self.model, forms[0].model, self.data)
            if not judged or self._keeps(other) or forms[0].repadded:
                best, agreement = forms[0], other
        if timed.slower_than_input(best.name):
            same = form(Variant.UNCHANGED, self.base.copy(), PassContext(), self.device, self._shared)
            with rectified(self.model):
                models = {Variant.INPUT: self.model, best.name: best.model, same.name: same.model}
                last = once(models, self.example_inputs, cost, best.name, seconds=3.0, passes=3 * PASSES)
            times = times | last.times
            other = compare(self.model, same.model, self.data)
            faster = last.slower_than_input(best.name) and times[same.name] < times[best.name]
            if faster and self._keeps(other):
                best, agreement = same, other
        choices = tuple(replace(c, taken=best.name in (Variant.CHOSEN, c.variant)) for c in choices)
        return Outcome(best, agreement, missed, back, times, choices)

    def _missed(self) -> dict[str, str]:
        """The sites without which the outputs miss the tolerance, found by halves, and by how much.

        Those that are proven are one for all, where they keep it. In the network as it came, operation by operation,
        so that nothing but the sites makes a difference: a ResNet-50 of which five sites in ten miss takes 35 s instead
        of 125 s with passes.
        """
        same = self._lowered(self._layers)

        def tried(names: Collection[str]) -> Agreement:
            gc.collect()  # graphs refer to themselves: ten models of 97 MiB waited to be freed, 1,002 MiB in all
            net = same.copy()
            replace_neurons(net, self._known(names))
            return compare(self.model, emit(net, self.device, self._shared), self.data)

        proven = [name for name in self.found if self.found[name].proven]
        kept = proven if self._keeps(tried(proven)) else []
        others = [name for name in self.found if name not in kept]
        together = tried([*kept, *others])
        blocks: list[tuple[list[str], Agreement]] = []
        if not self._keeps(together):
            every = Trials(2 * len(others))
            _, blocks = every.harmless(others, together, lambda some: tried([*kept, *some]), self._keeps)
        self._shared.clear()  # weights of the layers as they came, which folding replaces
        return {name: miss for block, miss in self._misses(blocks) for name in block}

    def _rolled_back(self, names: list[str], agreement: Agreement) -> tuple[Plan, tuple[Kept, ...], dict[str, str]]:
        """What is left out so that the outputs keep the tolerance, what that leaves as it came, and more sites to keep.

        First the layers that fold, with no merges, then the merges, by regions. Sites that are not proven go before
        layers do: what they change adds to rounding.

        Args:
            names: the sites that are removed; by themselves they keep the tolerance.
            agreement: how the network compares with the model with every pass.
        """
        trials, layers = Trials(_TRIALS), list(self._layers)
        untouched, back = frozenset[str](), list[Kept]()
        folded = self._tried(names, Plan(untouched, unmerged))
        if not self._keeps(folded):
            proven = [name for name in names if self.found[name].proven]
            others = [name for name in names if name not in proven]
            if others and self._keeps(self._tried(proven, Plan())):
                _, blocks = trials.harmless(
                    others, agreement, lambda some: self._tried([*proven, *some], Plan()), self._keeps
                )
                return Plan(), (), {name: miss for block, miss in self._misses(blocks) for name in block}
            taken, blocks = trials.harmless(
                layers,
                folded,
                lambda some: self._tried(names, Plan(frozenset(layers) - {*some}, unmerged)),
                self._keeps,
            )
            untouched = frozenset(layers) - {*taken}
            back += as_they_came(self._misses(blocks), self._layers)
            agreement = self._tried(names, Plan(untouched))
        if self._keeps(agreement):
            return Plan(untouched), tuple(back), {}
        start = Start(self._lowered(untouched), self._known(names), self.cost)
        plain = start.written(unmerged).net
        units = merging(start.written().net, plain)
        keeping, blocks = trials.harmless(
            units,
            agreement,
            lambda some: self._tried(names, Plan(untouched, unmerged_at({*units} - {*some}))),
            self._keeps,
        )
        back += not_merged(self._misses(blocks), plain, units)
        return Plan(untouched, unmerged_at({*units} - {*keeping}) if keeping else unmerged), tuple(back), {}

    def _keeps(self, agreement: Agreement) -> bool:
        return agreement.within(self.tolerance)

    def _misses(self, blocks: Iterable[tuple[list[str], Agreement]]) -> list[tuple[list[str], str]]:
        return [(block, agreement.miss(self.tolerance)) for block, agreement in blocks]

    def _tried(self, names: Collection[str], plan: Plan) -> Agreement:
        """How an attempt compares with the model; nothing of it stays."""
        gc.collect()
        agreement = self._attempt(names, plan).agreement
        self._shared.clear()
        return agreement

    def _known(self, names: Collection[str]) -> dict[str, Known]:
        return {name: self.found[name].known for name in names}

    def _lowered(self, untouched: Collection[str]) -> Net:
        return lower(self.captured, self.model, untouched) if untouched else self.base.copy()
