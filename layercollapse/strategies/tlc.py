"""TLC: batch norms say how often a neuron is on (arXiv 2412.15077)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from layercollapse._util.modes import evaluating
from layercollapse.graph.agreement import tensors_of
from layercollapse.graph.aten import does
from layercollapse.graph.capture import Capture, Site
from layercollapse.graph.export import call_arguments
from layercollapse.graph.operations import Does
from layercollapse.prune.linearize import linearize
from layercollapse.strategies.base import Action, Situation, Strategy


class TLC(Strategy):
    """One site a step: that whose rectifier the outputs miss least.

    A batch norm gives its neurons a mean β and a deviation |γ|; if they are Gaussian, a share Φ(β / |γ|) of their
    values is above 0. So a neuron is taken as on where β > 0, as off elsewhere. Each site behind a batch norm is tried
    so on the first batch of the data, and the one that goes is that of least loss. The loss is the divergence of the
    outputs from those of the network as it is, which needs no labels (the paper takes the cross-entropy with them).
    """

    def propose(self, situation: Situation) -> Action | None:
        """The site of least loss; the first of equals."""
        model, pruner, captured = situation.model, situation.pruner, situation.pruner.capture
        batch = next(iter(situation.data))
        shares = {site.name: shares_on(model, captured, site) for site in pruner.linearizable}
        slopes = {name: (share > 0.5).double() for name, share in shares.items() if share is not None}
        if not slopes:
            return None
        losses = {}
        with evaluating(model), torch.no_grad():
            before = _outputs(model, batch)
            for name, slope in slopes.items():
                # The capture that there is: another takes longer than all else.
                with linearize(model, {name: slope}, pruner.example_inputs, captured=captured):
                    losses[name] = divergence(before, _outputs(model, batch))
        best = min(losses, key=losses.__getitem__)
        return Action(linear={best: slopes[best]})


def shares_on(model: nn.Module, captured: Capture, site: Site) -> Tensor | None:
    """Share of each neuron's values above 0, Φ(β / |γ|), float64 (C,); None where no batch norm is right before it."""
    norm = _norm(captured.call_of(site).args[0])
    if norm is None:
        return None
    tensors = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    gamma, beta = (
        tensors.get(captured.tensors.get(x.name, "")) if isinstance(x, fx.Node) else None for x in norm.args[1:3]
    )
    if gamma is None or beta is None or len(beta) != site.channels:
        return None
    gamma, beta = (x.detach().cpu().double() for x in (gamma, beta))
    # Without a deviation all values are the mean.
    z = torch.where(gamma == 0, beta.sign() * math.inf, beta / gamma.abs())
    return torch.special.ndtr(z.nan_to_num(0.0, posinf=math.inf, neginf=-math.inf))


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean over the samples of the Kullback-Leibler divergence of softmax(after) from softmax(before), in nats."""
    before, after = (x.double().flatten(0, -2).log_softmax(-1) for x in (before, after))
    return float(F.kl_div(after, before, log_target=True, reduction="batchmean"))


def _norm(source: Any) -> fx.Node | None:
    """The batch norm whose result a node is."""
    while isinstance(source, fx.Node):
        if does(source) is Does.BATCH_NORM:
            return source
        if getattr(source.target, "__name__", "") != "getitem" and does(source) is not Does.SAME:
            return None
        source = source.args[0]
    return None


def _outputs(model: nn.Module, batch: Any) -> Tensor:
    args, kwargs = call_arguments(batch)
    return tensors_of(model(*args, **kwargs))[0]
