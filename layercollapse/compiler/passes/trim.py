"""The pass that takes outer taps of a kernel away, where no output has a weight for them."""

from __future__ import annotations

from dataclasses import replace

from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.ir.records import Affine
from layercollapse.compiler.ir.scaling import add_border_weight
from layercollapse.compiler.ir.weights import nonzero
from layercollapse.compiler.passes.context import Group, PassContext


def trim_kernels(net: Net, context: PassContext) -> bool:
    """Outer taps that are zero go, as far as the padding allows the same cut on both sides."""
    changed = False
    for node, op in net.records(Affine):
        if not op.geometry.kernel or op.geometry.transposed or not context.permits(Group.TRIM, node):
            continue
        if not bool(op.reads().any()):
            continue
        trimmed = _trim(op)
        if trimmed is not None:
            net.set(node, trimmed)
            changed = True
    return changed


def _trim(op: Affine) -> Affine | None:
    used = nonzero(op).flatten(0, 1).any(0)
    if op.border_weight is not None:
        used |= op.border_weight.ne(0).any(0)
    cuts = []
    for dim, (k, p, d) in enumerate(zip(op.geometry.kernel, op.geometry.padding, op.geometry.dilation, strict=True)):
        taps = used.movedim(dim, 0).reshape(k, -1).any(1).nonzero().flatten()
        cuts.append(min(int(taps[0]), k - 1 - int(taps[-1]), p // d))
    if not any(cuts):
        return None
    inside = tuple(slice(c, k - c) for c, k in zip(cuts, op.geometry.kernel, strict=True))
    geometry = replace(
        op.geometry,
        kernel=tuple(k - 2 * c for c, k in zip(cuts, op.geometry.kernel, strict=True)),
        padding=tuple(p - c * d for c, p, d in zip(cuts, op.geometry.padding, op.geometry.dilation, strict=True)),
    )
    border = None if op.border_weight is None else op.border_weight[(slice(None), *inside)]
    weight = op.weight[(slice(None), slice(None), *inside)].clone()
    trimmed = replace(op, weight=weight, geometry=geometry, border_weight=None, source=None)
    return trimmed if border is None else add_border_weight(trimmed, border)
