"""Prune a model step by step, with the budget that its entropy report asks for.

    pruner = Pruner(model, example_inputs)
    pruner.step(report, amount=0.5, rule="nepenthe")
    with pruner.attach(optimizer):      # pruned weights stay zero through momentum and weight decay
        train(model, optimizer)

A step is all or nothing: on an error no weight and no mask has changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from layercollapse._util.devices import on_cpu
from layercollapse._util.modes import evaluating
from layercollapse.compiler.analysis.reachability import depends
from layercollapse.compiler.frontend.lower import lower
from layercollapse.compiler.ir.graph import Net
from layercollapse.entropy.probe import EntropyReport
from layercollapse.errors import LayerCollapseError
from layercollapse.graph.capture import Capture, Site, capture, checked_capture
from layercollapse.graph.linear_sites import Line
from layercollapse.graph.prunable import check_any, prunable
from layercollapse.graph.watch import group_of, unwrapped
from layercollapse.prune.budget import GLOBAL, LayerState, Rule, allocate, budget
from layercollapse.prune.linearize import Becomes, Linearized, linearizable, lines_of
from layercollapse.prune.liveness import Liveness, Varying
from layercollapse.prune.masks import WeightMasks
from layercollapse.prune.zeros import ZerosKept

# Share of a layer's weights that the guard keeps, the first time that it must keep some.
_GUARD_DENSITY = 0.01

_LINE = ".line"  # what follows the name of a linear site in the state

# Forward passes for each halving that may look for layers whose weights the outputs need, and rounds of raising floors.
_LOOKS = 16
_ROUNDS = 24


@dataclass(frozen=True)
class StepResult:
    """What a pruning step did.

    Attributes:
        removed: weights removed, by rectifier site.
        removed_by_weight: the same by tensor.
        floors: weights that the guard kept so that the output goes on depending on the input, by site.
        density: fraction of the prunable weights that is left.
        emptied: sites that lost the last of their weights.
        shortfall: weights that `amount` asks for and that were not removed, as no site could lose more by the guard's
            floors and `max_layer_share`; 0 for a rule of the user.
    """

    removed: dict[str, int]
    removed_by_weight: dict[str, int]
    floors: dict[str, int]
    density: float
    emptied: tuple[str, ...] = ()
    shortfall: int = 0


class Pruner:
    """Unstructured magnitude pruning of the weights that feed a model's rectifiers.

    Every rectifier site is one layer of the budget, made of the weights that feed it; a weight that feeds several
    sites belongs to the first. Biases, normalizations and output layers are never pruned. What feeds a site is in
    `layercollapse.graph.feeding`; `unfed` says of every site without weights of its own why.

    Weights that are exactly zero when the pruner is built count as pruned, so a sparse model goes on where it was.
    With zeros that are an initialization, build the pruner after training or pass ``keep_zeros=True``.

    Args:
        model: the model, possibly inside DistributedDataParallel or `torch.compile`, or sharded by FSDP2
            (`fully_shard`) or as DTensors: then all processes call the same methods, and each holds the masks of its
            own part.
        example_inputs: what the model is called with; see `layercollapse.graph.capture`.
        ignore: what is not pruned: names of modules (with all inside), weights or sites, shell patterns
            (``"layer4.*"``) or regular expressions (``"re:.*downsample.*"``).
        floor: weights that every site keeps, or a dict of them by site. None lets the guard decide: where losing
            all weights of a layer would make the output constant, it keeps some. With 0, such a step is an error.
        min_density: fraction of its weights that every site keeps.
        keep_zeros: whether weights that are exactly zero now are left to train.
        samples: what the outputs are looked at with, before and after a step: two or more real samples, in the form of
            the example inputs and by default those; the same on every process, where there are several.
        captured: the model's capture with these inputs, if there is one.
        group: the process group of the processes that have the model. None: those over which it is sharded, those of
            its DistributedDataParallel, or the default group of torch.distributed, if there is one.

    Raises:
        LayerCollapseError: the model cannot be captured, has nothing to prune, or an argument names what it
            does not have.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        ignore: str | Sequence[str] = (),
        *,
        floor: int | Mapping[str, int] | None = None,
        min_density: float = 0.0,
        keep_zeros: bool = False,
        samples: Any = None,
        captured: Capture | None = None,
        group: Any = None,
    ) -> None:
        group = group_of(model) if group is None else group
        self.model = unwrapped(model)
        self.example_inputs, self._ignore = example_inputs, ignore
        self._linear: Linearized | None = None
        self._aliases: dict[str, tuple[str, ...]] = {}
        self.capture = self._came = checked_capture(self.model, example_inputs, captured)
        self._find_layers()
        check_any(prunable(self.model, self.capture, ignore), self.model, self.capture)
        self._floor = _checked_floor(floor, self.layers)
        self._min_density = _checked_density(min_density)
        self._liveness = Liveness(self.model, _checked_samples(samples, example_inputs))
        names = [name for names in self.layers.values() for name in names]
        self._masks = WeightMasks(self.model, names, keep_zeros, group)

    def _find_layers(self) -> None:
        """Read off the capture what feeds which site."""
        targets = prunable(self.model, self.capture, self._ignore)
        self.layers: dict[str, tuple[str, ...]] = targets.layers
        self.unfed: dict[str, str] = targets.unfed
        # Also of weights that fed a site which is linear now: what is pruned of them stays so.
        self._aliases = {**self._aliases, **targets.aliases}

    @property
    def linear(self) -> tuple[str, ...]:
        """The sites that `linearize` made linear, in execution order."""
        lines = {} if self._linear is None else self._linear.lines
        return tuple(site.name for site in self.capture.sites if site.name in lines)

    @property
    def linearizable(self) -> list[Site]:
        """The sites that `linearize` can make linear and has not, in execution order."""
        return linearizable(self.capture)

    @torch.inference_mode(False)
    def linearize(self, sites: Mapping[str, Becomes]) -> None:
        """Make sites linear in the model, as `layercollapse.linearize` does; they are part of `state_dict`.

        Weights that fed them feed what reads them from then on.

        Args:
            sites: site -> what it becomes; see `layercollapse.linearize`.

        Raises:
            LayerCollapseError: as there. The model is as it was.
        """
        lines = lines_of(self.capture, sites)
        self._become({**({} if self._linear is None else self._linear.lines), **lines})

    def _become(self, lines: Mapping[str, Line]) -> None:
        """Make these sites linear, and no others."""
        if self._linear is not None:
            self._linear.remove()
        self._linear = Linearized(self.model, lines, self._came) if lines else None
        self.capture = capture(self.model, self.example_inputs) if lines else self._came
        self._find_layers()

    @property
    def density(self) -> float:
        """Fraction of the prunable weights that is left: those that are kept, and pruned ones that are not zero.

        All processes ask for it together where weights are sharded.
        """
        left = sum(self._masks.kept.values()) + self._masks.revived()
        return left / sum(map(self._masks.numel, self._masks.names))

    def masks(self) -> dict[str, Tensor]:
        """Bool tensors by the weight's name, True where a weight is kept; sharded as the weight is."""
        return {name: self._masks.mask(name) for name in self._masks.names}

    @torch.inference_mode(False)
    def step(
        self,
        report: EntropyReport,
        amount: float = 0.5,
        rule: str | Rule = "nepenthe",
        max_layer_share: float = 1.0,
    ) -> StepResult:
        """Remove weights: the budget of each site by the rule, within a site those of smallest magnitude.

        Two guards keep the output dependent on the input: paths of weights must lead from one to the other, and on the
        samples an output must not become a constant that was none. Where a step of a named rule would break that, the
        layers that it takes too much of keep more (`StepResult.floors`).

        Args:
            report: the entropies of this model's sites, now.
            amount: a float in (0, 1] is a fraction of the kept weights of the sites that take part, an int a
                number of weights.
            rule: ``"nepenthe"``, ``"egp"``, ``"uniform"``, ``"global"`` (one threshold for the model), or a function
                ``(layers, amount) -> {site: count}`` of `layercollapse.prune.budget.LayerState`.
            max_layer_share: no site loses more than this share of its kept weights, in (0, 1]; what it would lose
                beyond that is divided among the others by the rule. It is part of the `floor` that a function sees.

        Raises:
            LayerCollapseError: the report is of another model, weights are not finite, the rule asks for what a
                layer has not, the output would become constant, or processes differ in what they have or ask for.
                Nothing has changed.
        """
        ranks = self._masks.ranks()
        share = ranks.together(lambda: self._checked(report, max_layer_share))
        states = self._states(report)
        self._masks.check()
        asked = {"amount": amount, "rule": rule if isinstance(rule, str) else "", "max_layer_share": share}
        ranks.check_same("step", {**asked, **{state.name: state for state in states}})
        wanted = sum(self._allocated(states, amount, rule).values()) if isinstance(rule, str) else 0
        states = [replace(x, floor=max(x.floor, x.kept - math.floor(share * x.kept))) for x in states]
        own, guard = {state.name: state.floor for state in states}, _GUARD_DENSITY
        with torch.no_grad():
            before, net = self._liveness.varying(self.model, ranks.decide), self._lowered()
            for _ in range(_ROUNDS):
                removed, by_weight, raised = self._guarded(net, states, amount, rule)
                restore = self._masks.clear(by_weight)
                led = self._carries()
                if led and not self._liveness.constant(self.model, before, ranks.decide):
                    try:
                        self._masks.check()
                    except LayerCollapseError:
                        restore()
                        raise
                    raised |= {state.name: state.floor for state in states if state.floor > own[state.name]}
                    emptied = [site for site, names in self.layers.items() if removed[site] and not self._kept(names)]
                    short = max(0, wanted - sum(removed.values()))
                    return StepResult(removed, by_weight, raised, self.density, tuple(emptied), short)
                restore()
                # Every layer has weights left, and yet no path of them leads from the input to the output.
                if not led and isinstance(rule, str) and guard < 1:
                    states, guard = self._thicker(net, states, guard), 2 * guard
                    continue
                fatal = self._deadening(states, by_weight, before)
                if not led and not (isinstance(rule, str) and fatal):
                    raise LayerCollapseError(
                        "amount: expected a step after which the output still depends on the input, got one after "
                        f"which no path of weights leads from one to the other, with {_taken(removed)} removed"
                    )
                if not isinstance(rule, str) or any(self._floor.get(site) == 0 for site in fatal):
                    break
                states = self._eased(states, removed, fatal)
        raise LayerCollapseError(
            "amount: expected a step after which the output still depends on the input, got one after which an output "
            f"is constant over the samples, because of {_taken({site: removed[site] for site in fatal})}; give them a "
            "floor, or a smaller amount or max_layer_share"
        )

    def apply(self, model: nn.Module | None = None) -> None:
        """Set the pruned weights to zero again, as after an optimizer step; `attach` does it by itself.

        Args:
            model: a copy of the model in which to do so, such as an average of its weights
                (`torch.optim.swa_utils.AveragedModel`); by default the model itself.

        Raises:
            LayerCollapseError: it has not the weights of the pruner's model. Nothing has changed.
        """
        if model is not None:
            model = unwrapped(model.module if isinstance(model, AveragedModel) else model)
            own = dict(model.named_parameters(remove_duplicate=False))
            if missing := [name for name in self._masks.names if name not in own]:
                raise LayerCollapseError(
                    f"model: expected a copy of the pruner's model, got one without the weights {', '.join(missing)}"
                )
        with torch.no_grad():
            self._masks.apply(model)

    def attach(self, optimizer: Any = None) -> ZerosKept:
        """Keep the pruned weights at zero while the model trains, with any optimizer.

        They are put back after every step of a torch optimizer that holds a parameter of the model, before every
        forward pass of the model and of copies made from now on (averages of weights), and in the end. So it does not
        matter that an optimizer moves weights between its steps or wraps another. Where the forward pass is compiled
        by `torch.compile`, it is the steps and the end alone.

        Args:
            optimizer: what trains; it need not be known, nor be a torch optimizer.

        Returns:
            A handle: ``handle.remove()`` ends it, and so does leaving ``with pruner.attach(optimizer):``.

        Raises:
            LayerCollapseError: something that has no ``step`` to call.
        """
        if optimizer is not None and not callable(getattr(optimizer, "step", None)):
            raise LayerCollapseError(f"optimizer: expected one with a step method, got {type(optimizer).__name__}")
        return ZerosKept(self)

    def state_dict(self) -> dict[str, Tensor]:
        """The packed masks by the weight's name, and ``SITE.line`` of the sites that are linear: tensors only, for
        `torch.save` or safetensors.

        Masks of sharded weights are gathered, one bit a weight: all processes ask together, each gets the state of the
        whole model, and it may be loaded on any number of them.
        """
        lines = {} if self._linear is None else self._linear.state_dict()
        return {**self._masks.state_dict(), **{f"{name}{_LINE}": line for name, line in lines.items()}}

    @torch.inference_mode(False)
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the masks and the linear sites of a pruner of the same model, and zero the weights that they prune.

        Raises:
            LayerCollapseError: masks of other weights, or of the wrong type or size, or lines of other sites. Nothing
                has changed.
        """
        lines = lines_in(state)
        checked = lines_of(self._came, lines) if lines else {}
        masks = {n: m for n, m in state.items() if n.removesuffix(_LINE) not in lines} if lines else state
        with torch.no_grad():
            self._masks.load_state_dict(masks)
        if checked or self._linear is not None:
            self._become(checked)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        twin = copy.copy(self)
        memo[id(self)] = twin
        memo[id(self._masks._group)] = self._masks._group  # what talks to other processes is no value
        # The captured graph does not change, and holds values that cannot be copied.
        twin.model = copy.deepcopy(self.model, memo)
        twin._masks = copy.deepcopy(self._masks, memo)
        twin._linear = copy.deepcopy(self._linear, memo)
        return twin

    def _checked(self, report: EntropyReport, max_layer_share: float) -> float:
        _check_report(
            report, {site.name: (site.kind, site.channels) for site in self.capture.sites}, self.capture.unread
        )
        return checked_share(max_layer_share)

    def _states(self, report: EntropyReport) -> list[LayerState]:
        magnitudes = self._masks.magnitudes()
        states = []
        for site, names in self.layers.items():
            kept = self._kept(names)
            numel = sum(map(self._masks.numel, names))
            states.append(
                LayerState(
                    name=site,
                    entropy=report[site].mean,
                    entropy_active=report[site].mean_over("active"),
                    mean_abs=sum(magnitudes[name] for name in names) / max(kept, 1),
                    kept=kept,
                    numel=numel,
                    floor=max(self._floor.get(site, 0), math.ceil(self._min_density * numel)),
                )
            )
        return states

    def _allocated(self, states: Sequence[LayerState], amount: float, rule: str | Rule) -> dict[str, int]:
        if rule == GLOBAL:
            return allocate(states, amount, self._global)
        ranks = self._masks.ranks()
        counts = ranks.together(lambda: allocate(states, amount, rule))
        ranks.check_same("weights to remove", counts)
        return counts

    def _kept(self, names: Collection[str]) -> int:
        return sum(self._masks.kept[name] for name in names)

    def _guarded(
        self, net: Net, states: Sequence[LayerState], amount: float, rule: str | Rule
    ) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """Counts by site and by weight that leave the output dependent on the input, and the floors raised for it."""
        raised: dict[str, int] = {}
        while True:
            removed = self._allocated(states, amount, rule)
            by_weight: dict[str, int] = {}
            for site, names in self.layers.items():
                by_weight |= self._masks.under_one_threshold(names, removed[site])
            fatal = self._fatal(net, states, by_weight)
            if not fatal:
                return removed, by_weight, raised
            refused = [site for site in fatal if not isinstance(rule, str) or self._floor.get(site) == 0]
            if refused:
                raise LayerCollapseError(
                    f"amount: expected a step after which the output still depends on the input, got one that takes "
                    f"the last weights of {', '.join(refused)}; give it a floor, or a smaller amount"
                )
            for state in states:
                if state.name in fatal:
                    first = math.ceil(_GUARD_DENSITY * state.numel)
                    raised[state.name] = min(state.kept, first if state.floor < first else 2 * state.floor)
            states = [replace(state, floor=raised.get(state.name, state.floor)) for state in states]

    def _global(self, layers: Sequence[LayerState], amount: float) -> dict[str, int]:
        """The rule "global": one threshold for all; a site that would fall below its floor loses what it may."""
        removed = dict.fromkeys((layer.name for layer in layers), 0)
        active = [layer for layer in layers if layer.available]
        total = budget(active, amount)
        while active and total:
            names = [name for layer in active for name in self.layers[layer.name]]
            by_weight = self._masks.under_one_threshold(names, total)
            wanted = {layer.name: sum(by_weight[name] for name in self.layers[layer.name]) for layer in active}
            full = [layer for layer in active if wanted[layer.name] > layer.available]
            if not full:
                return removed | wanted
            for layer in full:
                removed[layer.name] = layer.available
                total -= layer.available
            active = [layer for layer in active if layer not in full]
        return removed

    def _fatal(self, net: Net, states: Sequence[LayerState], by_weight: Mapping[str, int]) -> list[str]:
        """Sites whose weights must not all go: those that the output needs, the ones of highest entropy first."""
        dead = {name for name, kept in self._masks.kept.items() if kept == 0}
        if not self._depends(net, dead):
            raise LayerCollapseError(
                f"model: expected an output that depends on the input, but all weights of {', '.join(sorted(dead))} "
                "are pruned already"
            )
        dying = {name for name, count in by_weight.items() if count and count == self._masks.kept[name]}
        if not dying or self._depends(net, dead | dying):
            return []
        fatal = []
        for state in sorted(states, key=lambda state: state.entropy):
            more = dying.intersection(self.layers[state.name])
            if more and self._depends(net, dead | more):
                dead |= more
            elif more:
                fatal.append(state.name)
        return fatal

    def _deadening(self, states: Sequence[LayerState], by_weight: Mapping[str, int], before: Varying) -> list[str]:
        """Sites without whose weights an output is constant: those of lowest entropy lose theirs first.

        Found by halves, so that of L sites one takes about log₂ L forward passes. With many, those that are not known
        to be harmless after `_LOOKS` times as many passes count among them.
        """
        losing = [x.name for x in sorted(states, key=lambda x: x.entropy) if self._counts([x.name], by_weight)]
        left = _LOOKS * (1 + len(losing).bit_length())

        def alive(sites: Sequence[str]) -> bool:
            nonlocal left
            left -= 1
            restore = self._masks.clear(self._counts(sites, by_weight))
            try:
                return not self._liveness.constant(self.model, before, self._masks.ranks().decide)
            finally:
                restore()

        taken, fatal = list[str](), list[str]()
        while losing and not alive([*taken, *losing]):
            harmless, deadly = 0, len(losing)  # with so many of them the outputs vary, with so many not
            while deadly - harmless > 1 and left > 0:
                middle = (harmless + deadly) // 2
                if alive([*taken, *losing[:middle]]):
                    harmless = middle
                else:
                    deadly = middle
            if left <= 0:
                return fatal + losing[harmless:]
            taken += losing[:harmless]
            fatal.append(losing[harmless])
            losing = losing[deadly:]
        return fatal

    def _counts(self, sites: Collection[str], by_weight: Mapping[str, int]) -> dict[str, int]:
        return {name: by_weight[name] for site in sites for name in self.layers[site] if by_weight.get(name)}

    def _eased(
        self, states: Sequence[LayerState], removed: Mapping[str, int], sites: Collection[str]
    ) -> list[LayerState]:
        """The states with floors for some sites: twice what a step would leave them, and the guard's share at least."""

        def floor(state: LayerState) -> int:
            first = math.ceil(_GUARD_DENSITY * state.numel)
            return min(state.kept, max(first, 2 * state.floor, 2 * (state.kept - removed[state.name])))

        return [replace(x, floor=floor(x)) if x.name in sites else x for x in states]

    def _thicker(self, net: Net, states: Sequence[LayerState], density: float) -> list[LayerState]:
        """The states with floors of a share of the weights for the sites that the output cannot do without."""
        thicker = []
        for state in states:
            needed = self._floor.get(state.name) != 0 and not self._depends(net, set(self.layers[state.name]))
            floor = min(state.kept, math.ceil(density * state.numel)) if needed else 0
            thicker.append(replace(state, floor=max(state.floor, floor)))
        return thicker

    def _carries(self) -> bool:
        """Whether the weights, as they are in evaluation mode, leave a path from the input to the output."""
        with on_cpu():
            return depends(self._lowered())

    def _lowered(self) -> Net:
        with evaluating(self.model), on_cpu():
            return lower(self.capture, self.model)

    def _depends(self, net: Net, dead: set[str]) -> bool:
        """Whether layers lead from the input to the output without those whose weights are in `dead`."""
        with on_cpu():
            return depends(net, {alias for name in dead for alias in self._aliases[name]})


def lines_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The lines in a pruner's state, as `linearize` takes them."""
    names = [name for name in state if str(name).endswith(_LINE)]
    return {name.removesuffix(_LINE): state[name] for name in names}


def _taken(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} weights of {site}" for site, count in removed.items() if count)


def _checked_floor(floor: int | Mapping[str, int] | None, layers: Mapping[str, Any]) -> dict[str, int]:
    """Explicit floors by site; empty if the guard decides."""
    if floor is None:
        return {}
    floors = dict(floor) if isinstance(floor, Mapping) else dict.fromkeys(layers, floor)
    for site, value in floors.items():
        if site not in layers:
            raise LayerCollapseError(f"floor: expected pruned sites ({', '.join(layers)}), got {site!r}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise LayerCollapseError(f"floor: expected an int of at least 0 for {site!r}, got {value!r}")
    return floors


def checked_share(max_layer_share: float) -> float:
    """The share as a float; LayerCollapseError unless it is one, in (0, 1]."""
    if isinstance(max_layer_share, bool) or not isinstance(max_layer_share, Real) or not 0 < max_layer_share <= 1:
        raise LayerCollapseError(f"max_layer_share: expected a fraction in (0, 1], got {max_layer_share!r}")
    return float(max_layer_share)


def _checked_samples(samples: Any, example_inputs: Any) -> Any:
    if samples is None:
        return example_inputs
    if not isinstance(samples, Tensor | Mapping | tuple | list):
        raise LayerCollapseError(
            "samples: expected a tensor, a tuple of arguments or a dict of keyword arguments, got "
            f"{type(samples).__name__}"
        )
    return samples


def _checked_density(min_density: float) -> float:
    if not isinstance(min_density, int | float) or not 0 <= min_density <= 1:
        raise LayerCollapseError(f"min_density: expected a fraction from 0 to 1, got {min_density!r}")
    return float(min_density)


def _check_report(report: EntropyReport, expected: Mapping[str, tuple[str, int]], unread: Collection[str]) -> None:
    if not isinstance(report, EntropyReport):
        raise LayerCollapseError(f"report: expected an EntropyReport, got {type(report).__name__}")
    reported = {layer.name: (layer.kind, layer.neurons) for layer in report}
    reported = {name: entry for name, entry in reported.items() if name in expected or name not in unread}
    for site in [*expected, *reported]:
        if expected.get(site) != reported.get(site):
            want, got = (
                f"{entry[0]} with {entry[1]} neurons" if entry else "no such site"
                for entry in (expected.get(site), reported.get(site))
            )
            raise LayerCollapseError(
                f"report: expected one of this model; {site!r} is {want} in it, {got} in the report"
            )
