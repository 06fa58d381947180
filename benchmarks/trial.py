"""What benchmarks/architectures.py does with one network: prune, collapse, compare in float64, save and load."""

from __future__ import annotations

import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
import zoo
from torch import Tensor, nn

import layercollapse as lc
from layercollapse._util.modes import same_values
from layercollapse.graph.agreement import tensors_of
from layercollapse.graph.export import call_arguments, copied
from layercollapse.prune.budget import LayerState

RIGHT, REFUSED, WRONG, BROKEN = "right", "refused", "wrong", "does not run itself"
TOLERANCE = 1e-4  # what collapse accepts of activations that it takes for linear by the data
Tell = Callable[..., None]


class WrongError(Exception):
    """A result that is not what the sparse model computes."""


def warm_up() -> None:
    """Import what torch imports at the first export, for all the processes that follow."""
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    run(zoo.Network("torch/small", lambda: nn.Sequential(*layers), partial(zoo.images, 3)), lambda **_: None)


def run(network: zoo.Network, tell: Tell) -> None:
    """Take a network through all of it.

    Args:
        network: how to build it, and what it takes.
        tell: called as ``tell(field=value)`` with what is known, as soon as it is; the last `outcome` counts.
    """
    torch.manual_seed(0)
    try:
        model = network.build().double()
        settle(model, [network.inputs(8) for _ in range(2)])
        data, other = network.inputs(4), network.inputs(2)
        if not all(bool(output.isfinite().all()) for output in outputs(model, data)):
            return tell(outcome=BROKEN, reason="its outputs are not finite")
    except Exception as error:
        return tell(outcome=BROKEN, reason=f"{type(error).__name__}: {error}")
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    tell(outcome=REFUSED, parameters=sum(p.numel() for p in model.parameters()), bytes=size)
    base, started = resident("RssAnon"), time.process_time()
    forget_peak()
    try:
        prune(model, data, tell)
        state = checksums(model)
        result = lc.collapse(model, data, report_of(model, data), data=[(data,)], cost="macs", tolerance=TOLERANCE)
        gone = [site for site in result.sites if site.status == "collapsed"]
        tell(sites=len(result.sites), collapsed=len(gone), guarantees=Counter(site.guarantee for site in gone))
        tell(depth=[result.before.depth, result.after.depth], after=result.after.parameters)
        if changed := [name for name, checksum in checksums(model).items() if checksum != state[name]]:
            raise WrongError(f"collapse has changed {', '.join(changed)}")
        known = {site.guarantee for site in result.sites}
        # What rests on the data holds for them alone.
        compared = [data, first(data, 1), *([] if known & {"empirical", "approximate"} else [other])]
        error = max(difference(outputs(model, x), outputs(result.model, x)) for x in compared)
        tell(error=error, spread=spread(outputs(model, data)))
        if not error <= (TOLERANCE if "approximate" in known else network.accurate):
            raise WrongError(f"differs by {error:.1e}")
        with tempfile.TemporaryDirectory() as folder:
            result.save(folder)
            loaded = lc.load(folder)
        if not (error := difference(outputs(result.model, data), outputs(loaded, data))) <= network.accurate:
            raise WrongError(f"differs by {error:.1e} after saving and loading")
        tell(outcome=RIGHT, reason="")
    except WrongError as error:
        tell(outcome=WRONG, reason=str(error))
    except lc.LayerCollapseError as error:
        tell(outcome=REFUSED, reason=str(error))
    finally:
        tell(seconds=time.process_time() - started, peak=max(0, resident("VmHWM") - resident("RssFile") - base))


def settle(model: nn.Module, batches: Iterable[Any]) -> None:
    """Make an initialized network look trained: evaluation mode, no constant parameters, statistics of the batches.

    Norms of weight 0, layer scales of 1e-6 and heads of zeros would make most of the network invisible.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                draw(parameter)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the mean over all batches
            if norm.track_running_stats:
                norm.reset_running_stats()
        model.train()
        for batch in batches:
            outputs(model, batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


def draw(parameter: Tensor) -> None:
    """Random values in the place of a constant: factors of 0.5 to 1.5, small terms, or matrices that keep the scale."""
    if parameter.ndim > 1 and parameter.shape[0] > 1:
        parameter.normal_(std=parameter[0].numel() ** -0.5)
    elif bool((parameter == 0).all()):
        parameter.normal_(std=0.1)
    else:
        parameter.uniform_(0.5, 1.5)


def prune(model: nn.Module, data: Any, tell: Tell) -> None:
    """A NEPENTHE step of a half, and one by the first of four rules that leaves the output dependent on the input:
    every second site loses all, the others lose all, the one of lowest entropy loses all, NEPENTHE again.

    A refusal of all is told, and what was taken away before it is away.
    """
    try:
        pruner = lc.Pruner(model, data)
        tell(fed=sum(bool(site.feeding) for site in pruner.capture.sites))
        pruner.step(report_of(model, data), amount=0.5)
        report = report_of(model, data)
        for rule in (every_second, others, lowest):
            with suppress(lc.LayerCollapseError):
                pruner.step(report, rule=rule)
                break
        else:
            pruner.step(report, amount=0.5)
        tell(density=pruner.density)
    except lc.LayerCollapseError as error:
        tell(unpruned=str(error))


def every_second(layers: Sequence[LayerState], amount: float) -> dict[str, int]:
    """A budget rule: all weights of the second layer, the fourth, and so on."""
    return {layer.name: layer.available for layer in layers[1::2]}


def others(layers: Sequence[LayerState], amount: float) -> dict[str, int]:
    """A budget rule: all weights of the first layer, the third, and so on."""
    return {layer.name: layer.available for layer in layers[::2]}


def lowest(layers: Sequence[LayerState], amount: float) -> dict[str, int]:
    """A budget rule: all weights of the layer of lowest entropy among those that have any."""
    layer = min((layer for layer in layers if layer.available), key=lambda layer: layer.entropy)
    return {layer.name: layer.available}


def report_of(model: nn.Module, data: Any) -> lc.EntropyReport | None:
    """The signs of the data at every rectifier; None where the model calls none."""
    with lc.EntropyProbe(model) as probe:
        outputs(model, data)
    return probe.report() if probe.calls() else None


def outputs(model: nn.Module, data: Any) -> list[Tensor]:
    args, kwargs = call_arguments(copied(data))
    with torch.no_grad():
        return tensors_of(model(*args, **kwargs))


def checksums(model: nn.Module) -> dict[str, int]:
    """A hash of the bytes of every parameter and buffer: copies would count as memory that the collapse takes."""
    return {name: zlib.crc32(value.contiguous().numpy()) for name, value in model.state_dict().items()}


def first(data: Any, count: int) -> Any:
    """The first samples of inputs."""
    return pytree.tree_map_only(Tensor, lambda x: x[:count], data)


def difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """Largest difference of two lists of outputs, relative to max(1, |y|) of its output; infinite for other shapes."""
    if [t.shape for t in expected] != [t.shape for t in got]:
        return torch.inf
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        apart = (a.double() - b.double()).abs()
        apart[same_values(a, b)] = 0
        scale = max(1.0, float(a.double().abs().nan_to_num(posinf=0).max())) if a.numel() else 1.0
        worst = max(worst, float(apart.nan_to_num(nan=torch.inf).max()) / scale if apart.numel() else 0.0)
    return worst


def spread(outputs: list[Tensor]) -> float:
    """How much outputs depend on the input: their largest standard deviation over the samples."""
    stacked = [t.double().flatten(1) for t in outputs if t.ndim > 1 and len(t) > 1 and t.numel()]
    return max((float(t.std(0).max()) for t in stacked), default=0.0)


def resident(field: str) -> int:
    """Bytes of memory of this process: a field of /proc/self/status, 0 where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    return 0


def forget_peak() -> None:
    """Start the peak of this process's memory (VmHWM) anew."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
