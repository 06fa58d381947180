"""What a collapse gives back, and what it says about every site."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from layercollapse.compiler.analysis.cost import Summary
from layercollapse.compiler.analysis.obstacles import Kept
from layercollapse.compiler.analysis.outline import Part
from layercollapse.compiler.backend.serialize import save
from layercollapse.compiler.driver.explain import explain
from layercollapse.compiler.driver.refit import Refitted
from layercollapse.compiler.tuning.autotune import Choice
from layercollapse.compiler.tuning.variants import Variant


@dataclass(frozen=True)
class SiteResult:
    """What became of one rectifier site.

    Attributes:
        name: the site.
        kind: the rectifier.
        status: ``"collapsed"`` (the rectifier is gone), ``"partial"`` (neurons that have one value were taken for it)
            or ``"kept"``.
        guarantee: ``"exact"``: algebra shows that the rectifier, or every such neuron, is linear whatever the input;
            ``"certified"``: interval bounds show it for every input in the box; ``"empirical"``: no sign changed on
            the data that the report counted; ``"approximate"``: the same, for a rectifier that is not piecewise
            linear (GELU and kin), within the tolerance on the data compared; ``"refitted"``: it had collapsed with one
            of these, and then the layers around it were replaced by others that were fitted on the data
            (``mode="refit"``), which the tolerance does not judge. Empty for a kept site.
        reason: one sentence: why it collapsed, or why it could not.
        neurons: neurons that it had.
        mixed: neurons that changed sign on the data counted, for which a rectifier that could go stays.
        removed: neurons that are gone: all of a collapsed site, and of others those that nothing reads.
    """

    name: str
    kind: str
    status: str
    guarantee: str
    reason: str
    neurons: int
    removed: int
    mixed: int = 0


@dataclass(frozen=True)
class CollapseResult:
    """A collapsed model.

    Attributes:
        model: a plain module with ordinary parameters: no masks, no hooks; trainable and exportable. It is called as
            the original is: the same arguments, of which optional ones that the example did not have take their
            defaults alone; outputs of the same class; and with `labels`, where they add a loss to the outputs that is
            a cross entropy (also of the next token, or binary) or a mean squared error, the same loss.
        sites: one entry for each rectifier site of the original, in execution order.
        kept_layers: pairs of layers that follow each other without a rectifier and stay two, and why: the border, what
            merging them would cost, the operations between them, or by how much merging them misses the tolerance; and
            layers that stay as they came because of that.
        before: depth, parameters and multiply-accumulates of the sparse model.
        after: the same of the collapsed one.
        max_abs_error: largest absolute difference between their outputs on the data.
        same_predictions: number of samples with the same prediction.
        samples: number of samples compared.
        example_inputs: what the model was captured with; `save` exports with them.
        form: how it is written: ``"every pass applied"``, ``"every region as it is fastest"``, or, where all that was
            slower than the input, ``"nothing removed or merged"``.
        latency: form, or ``"the model as it came"`` -> median time of a forward pass on the example inputs in ms, all
            measured in turns; empty where nothing was timed (``cost="macs"``, or nothing to change).
        repadded: layers that merged though one padding cannot do what their two did, ``"first → last"``, only with
            ``mode="repad"``: approximate at the border. Where there are any, train the model once more.
        refitted: the regions that were replaced by layers fitted on the data, in the order of the network, only with
            ``mode="refit"``. Where there are any, train the model once more.
        fixed_sizes: input -> the shape that it must have, with None for the batch; where the model computes with its
            inputs' sizes in Python, so that the collapsed one is right for those of the example alone, and refuses
            others. Empty: it takes all that the model takes.
        regions: the parts that there was more than one way to write, in the order of the network, with the time of
            each way, and whether the model is written in the fastest; empty where nothing was timed.
        notes: what `layercollapse.run` says of its choice of the model that was collapsed.
        spread: largest difference of any entry of the sparse model's outputs between two samples of the data; None with
            one sample alone.
        hardly_varies: whether that is less than a thousandth of the largest magnitude, of every output tensor: then
            agreement says little, as a constant would agree as well.
        unfed: sites that a `Pruner` finds no weights for -> why.
        parts_before: the layers and rectifiers of the model that came, in execution order.
        parts_after: the same of the collapsed one.
        unshared: layers that the model calls more than once, of which calls have weights of their own now, or are gone.
    """

    model: nn.Module
    sites: tuple[SiteResult, ...]
    kept_layers: tuple[Kept, ...]
    before: Summary
    after: Summary
    max_abs_error: float
    same_predictions: int
    samples: int
    example_inputs: Any
    form: Variant
    latency: Mapping[Variant, float]
    repadded: tuple[str, ...] = ()
    refitted: tuple[Refitted, ...] = ()
    fixed_sizes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    unfed: Mapping[str, str] = field(default_factory=dict)
    regions: tuple[Choice, ...] = ()
    unshared: tuple[str, ...] = ()
    parts_before: tuple[Part, ...] = ()
    parts_after: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    spread: float | None = None
    hardly_varies: bool = False

    @property
    def latency_before(self) -> float | None:
        """Time of the model that came, in ms; see `latency`."""
        return self.latency.get(Variant.INPUT)

    @property
    def latency_after(self) -> float | None:
        """Time of the collapsed model, in ms; see `latency`."""
        return self.latency.get(self.form)

    @property
    def kept(self) -> dict[str, str]:
        """`kept_layers` as a dict: ``"first → second"``, or the layer alone -> why."""
        return {" → ".join(one.layers): one.reason for one in self.kept_layers}

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Names of the collapsed sites."""
        return tuple(site.name for site in self.sites if site.status == "collapsed")

    def explain(self) -> str:
        """What was done and why, in lines: sizes and times; a line for every site; layers that could merge or fold and
        did not; sizes that are fixed; the parts that were timed.
        """
        return explain(self)

    def save(self, folder: str | os.PathLike[str], onnx: bool = False) -> None:
        """Write ``model.safetensors``, ``model.json`` and ``model.pt2`` into a folder; see `layercollapse.load`.

        Args:
            folder: made if it is missing.
            onnx: also write ``model.onnx``, checked with ONNX Runtime; needs ``layercollapse[export]``.

        Raises:
            LayerCollapseError: the folder cannot be written, or the model has no form that can be loaded, or no ONNX
                form; nothing is written then.
        """
        save(self.model, folder, self.example_inputs, onnx)
