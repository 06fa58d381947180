"""For which sizes of its inputs a collapsed model is right: all that the model takes, or those of the example alone.

What a model's Python computes from ``x.shape`` is a number in its graph: the kernel of a pooling over the whole map, a
scale, the sizes of a view. Whether there is such a number shows where both run on inputs of other sizes.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from layercollapse._util.modes import evaluating, same_values
from layercollapse.compiler.backend.modules import FixedSizes, FixedValue
from layercollapse.compiler.ir.arguments import named
from layercollapse.graph.agreement import tensors_of, written_out
from layercollapse.graph.aten import packet, row, spread
from layercollapse.graph.export import call_arguments, copied
from layercollapse.graph.meta import SHAPE, inherit

aten = torch.ops.aten

# Inputs of other sizes that a model is compared on, of those that it takes: all sizes changed, and the first alone,
# for what depends on the ratio of height and width.
_RUNS = 2
# They are as much larger as the example, or by this, one less where the model takes it: what a model pads to whole
# windows it does not pad at a multiple, and a window of the example's size leaves out the most.
_MORE = 64
# A range of values that is no data's, but of a mask that is added to scores.
_MASKED = 1e4
_POOLS: dict[Any, tuple[Any, int]] = {
    **{getattr(aten, f"max_pool{dims}d"): (aten.amax.default, dims) for dims in (1, 2, 3)},
    **{getattr(aten, f"avg_pool{dims}d"): (aten.mean.dim, dims) for dims in (1, 2, 3)},
}

Dims = tuple[tuple[int, ...], ...]  # of every tensor, those that change together
Case = tuple[tuple, dict[str, Any], list[Tensor]]  # arguments, and what the model gives


def settle(
    model: nn.Module, emitted: fx.GraphModule, example_inputs: Any, exact: bool, lowered: Callable[[], fx.GraphModule]
) -> tuple[fx.GraphModule, dict[str, tuple[int | None, ...]]]:
    """Make a collapsed model right, or an error, for inputs of other sizes than the example's.

    Where the model runs on such inputs and the collapsed one does not, or gives something else, poolings over whole
    maps become means and maxima over all that comes. If that is not enough, the sizes are fixed.

    Args:
        model: the model that came.
        emitted: the collapsed one.
        example_inputs: what it was captured with.
        exact: whether the two are equal by algebra. If not, what was captured is compared in place of `emitted`
            where their values differ: an approximation differs at every size.
        lowered: makes that: the network as captured, layer by layer.

    Returns:
        The collapsed model, and, where its sizes are fixed, input -> the shape that it must have, with None for the
        batch.
    """
    args, kwargs = call_arguments(example_inputs)
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not leaves or leaves[0].ndim == 0 or leaves[0].shape[0] == 0:
        return emitted, {}
    # What refuses other sizes since they were fixed before keeps them: they are no longer in its own graph.
    fixed = any(isinstance(module, FixedSizes) for module in model.modules())
    if not fixed:
        cases = _cases(model, emitted, args, kwargs)
        if _follows(emitted, cases, exact, lowered):
            return emitted, {}
        pooled = _pooling_everything(emitted)
        if pooled is not None and _follows(pooled, cases, exact, lambda: _pooling_everything(lowered()) or pooled):
            return pooled, {}
    return _with_sizes(emitted, args, kwargs, leaves[0].shape[0])


def other_cases(model: fx.GraphModule, args: tuple, kwargs: dict[str, Any]) -> list[Case]:
    """Arguments of other sizes than the example's that a model takes, some, and what it gives; none where it refuses
    every other size.
    """
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not leaves or leaves[0].ndim == 0 or leaves[0].shape[0] == 0:
        return []
    return _cases(model, model, args, kwargs)


def takes(model: Callable[..., Any], cases: list[Case]) -> bool:
    """Whether a program gives tensors of the expected shapes in every case."""
    for args, kwargs, expected in cases:
        try:
            with torch.no_grad():
                got = tensors_of(model(*copied(args), **copied(kwargs)))
        except Exception:  # a guard of an export, or ONNX Runtime: they have no common class
            return False
        if [t.shape for t in got] != [t.shape for t in expected]:
            return False
    return True


def with_values(model: fx.GraphModule, example_inputs: Any) -> fx.GraphModule:
    """The model with every number, text, truth value or None that comes checked to be the example's.

    What the model did with it is in the graph, so that another would make no difference, in silence.
    """
    args, kwargs = call_arguments(example_inputs)
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    places = [node for node in model.graph.nodes if node.op == "placeholder"]
    for node in reversed(places):
        value = given.get(str(node.target))
        # A NaN is equal to nothing.
        if value is None or isinstance(value, int | str) or (isinstance(value, float) and not math.isnan(value)):
            name = _free(model, f"value_of_{node.target}")
            model.add_module(name, FixedValue(str(node.target)))
            with model.graph.inserting_after(places[-1]):
                model.graph.call_module(name, (node, value))
    model.recompile()
    return model


def _free(model: nn.Module, name: str) -> str:
    """The name, or a longer one that the model does not have."""
    while hasattr(model, name):
        name += "_"
    return name


def _cases(model: nn.Module, emitted: fx.GraphModule, args: tuple, kwargs: dict) -> list[Case]:
    """Arguments of other sizes that the model takes, one sample, and what it gives for each."""
    flat, spec = pytree.tree_flatten((args, kwargs))
    places = [index for index, leaf in enumerate(flat) if isinstance(leaf, Tensor)]
    batch = flat[places[0]].shape[0]
    batched = [flat[place].ndim > 0 and flat[place].shape[0] == batch for place in places]
    one = [flat[place][:1] if rows else flat[place] for place, rows in zip(places, batched, strict=True)]
    # A batch that the graph has in it is none of its sizes.
    if _outputs(emitted, *_filled(flat, spec, places, one)) is None:
        one = [flat[place] for place in places]
    fragile = any(leaf.device.type != "cpu" for leaf in one) and _indexes(emitted)
    cases: list[Case] = []
    for plans in _plans(one, batched):
        enough = len(cases) + _RUNS
        for dims in plans:
            for other in _sizes(one, dims, fragile):
                values = [_resized(leaf, own, other) for leaf, own in zip(one, dims, strict=True)]
                changed = _filled(flat, spec, places, values)
                expected = _outputs(model, *changed)
                if expected is not None:
                    cases.append((*changed, expected))
                    break
            if len(cases) == enough:
                break
    return cases


def _filled(flat: list[Any], spec: Any, places: Sequence[int], values: Sequence[Tensor]) -> tuple[tuple, dict]:
    leaves = list(flat)
    for place, value in zip(places, values, strict=True):
        leaves[place] = value
    return pytree.tree_unflatten(leaves, spec)


def _plans(leaves: Sequence[Tensor], batched: Sequence[bool]) -> list[list[Dims]]:
    """Dimensions that may change together, likely ones first: with channels first, then with channels last.

    Sizes of one by themselves: most of them broadcast, but a single token, or row, may become many.
    """
    plans: list[Dims] = []
    free = [tuple(range(int(rows), leaf.ndim)) for leaf, rows in zip(leaves, batched, strict=True)]
    for channel in (slice(1, None), slice(0, -1)):
        every = tuple(
            dims[channel] if leaf.is_floating_point() and len(dims) > 1 else dims
            for leaf, dims in zip(leaves, free, strict=True)
        )
        plans.append(every)
        for index in range(max(map(len, every))):
            plans.append(tuple(dims[index : index + 1] if len(dims) > 1 else () for dims in every))
        for size in dict.fromkeys(leaf.shape[dim] for leaf, dims in zip(leaves, every, strict=True) for dim in dims):
            plans.append(
                tuple(
                    tuple(dim for dim in dims if leaf.shape[dim] == size)
                    for leaf, dims in zip(leaves, every, strict=True)
                )
            )
    plans = sorted(dict.fromkeys(plans), key=lambda plan: -sum(map(len, plan)))
    parts = []
    for one in (False, True):
        some = [
            tuple(
                tuple(d for d in dims if (leaf.shape[d] == 1) == one) for leaf, dims in zip(leaves, plan, strict=True)
            )
            for plan in plans
        ]
        parts.append([plan for plan in dict.fromkeys(some) if any(plan)])
    return parts


def _sizes(leaves: Sequence[Tensor], dims: Dims, fragile: bool) -> Iterator[Callable[[int], int]]:
    """Ways to change a size, likely ones first."""
    if not fragile:
        if not _whole(leaves, dims):
            # A window as long as the other side still fits once.
            yield lambda size: size + min(size, _MORE) // 4 + 1
        yield lambda size: size + max(1, min(size, _MORE) - 1)
        yield lambda size: size + min(size, _MORE)
    if fragile or not all(leaf.is_floating_point() and leaf.ndim > 3 for leaf in leaves):
        yield lambda size: max(1, size // 2)  # tokens, of which some models take no more than so many
    elif any(leaf.shape[dim] > _MORE for leaf, own in zip(leaves, dims, strict=True) for dim in own):
        yield lambda size: 2 * size


def _whole(leaves: Sequence[Tensor], dims: Dims) -> bool:
    """Whether height and width change together, where there are such."""
    return all(len(own) != 1 or leaf.ndim < 4 for leaf, own in zip(leaves, dims, strict=True))


def _resized(leaf: Tensor, dims: Sequence[int], other: Callable[[int], int]) -> Tensor:
    """A tensor of another size, made of the rows and columns that it has: ids and masks stay some."""
    for dim in dims:
        size, new = leaf.shape[dim], other(leaf.shape[dim])
        # Of a generator of its own, the same for inputs that share the size.
        more = torch.randint(size, (max(0, new - size),), generator=torch.Generator().manual_seed(size))
        picked = torch.cat([torch.arange(min(size, new)), more])
        leaf = leaf.index_select(dim, picked.to(leaf.device))
    if not dims or not leaf.is_floating_point() or leaf.ndim < 3 or not leaf.numel():
        return leaf
    low, high = leaf.aminmax()
    reach = float(high - low) / 2 or 1.0  # of an example of zeros, only the shape matters
    if not reach < _MASKED:
        return leaf
    noise = 2 * torch.rand(leaf.shape, generator=torch.Generator().manual_seed(0)) - 1
    for dim in dims:
        # More at the end: a maximum that leaves out the last row, or column, must not be the same.
        noise = noise.movedim(dim, -1).mul(torch.linspace(0.1, 2, leaf.shape[dim]).square()).movedim(-1, dim)
    return leaf + reach * noise.to(leaf)


def _indexes(model: fx.GraphModule) -> bool:
    return any(row(node).indexes for node in model.graph.nodes)


def _outputs(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> list[Tensor] | None:
    """What a model gives, or None where it refuses; the random state stays as it was."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with evaluating(model), written_out(), torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tensors_of(model(*copied(args), **copied(kwargs)))
        except Exception:
            return None


def _follows(model: nn.Module, cases: list[Case], exact: bool, lowered: Callable[[], nn.Module]) -> bool:
    """Whether a model gives in every case what is expected, or, unless exact, at least has its shapes."""
    differs = []
    for args, kwargs, expected in cases:
        got = _outputs(model, args, kwargs)
        if got is None or [t.shape for t in got] != [t.shape for t in expected]:
            return False
        if not all(map(_close, got, expected)):
            differs.append((args, kwargs, expected))
    return not differs or (not exact and _follows(lowered(), differs, True, lowered))


def _close(got: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal but for rounding, relative to the largest value."""
    if not got.numel():
        return True
    a, b = got.double(), expected.double()
    finite = b[b.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    rounding = math.sqrt(torch.finfo(expected.dtype).eps) / 3 if expected.is_floating_point() else 0.0
    return bool((same_values(a, b) | ((a - b).abs() <= rounding * scale)).all())


def _pooling_everything(model: fx.GraphModule) -> fx.GraphModule | None:
    """The model with a mean or a maximum over all in place of each pooling whose one window is all; None without."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(model.graph, {}))
    changed = False
    for node in list(graph.nodes):
        reduction, count = _POOLS.get(packet(node), (None, 0))
        shape = None if reduction is None else SHAPE.get(node.args[0])
        if shape is None or len(shape) != count + 2:
            continue
        geometry, pads, dilation = (
            spread(named(node, name, default), count)
            for name, default in (("kernel_size", 1), ("padding", 0), ("dilation", 1))
        )
        dims = [dim + 2 for dim, size in enumerate(geometry) if size == shape[dim + 2]]
        strides = spread(named(node, "stride") or geometry, count)
        rest = [dim for dim in range(count) if dim + 2 not in dims]
        plain = not any(pads) and not named(node, "divisor_override") and set(dilation) == {1}
        if not dims or not plain or any((geometry[dim], strides[dim]) != (1, 1) for dim in rest):
            continue
        with graph.inserting_before(node):
            new = graph.call_function(reduction, (node.args[0], dims, True))
        inherit(new, node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        changed = True
    return fx.GraphModule(model, graph, class_name="Collapsed").eval() if changed else None


def _with_sizes(
    model: fx.GraphModule, args: tuple, kwargs: dict[str, Any], batch: int
) -> tuple[fx.GraphModule, dict[str, tuple[int | None, ...]]]:
    """The model with every tensor that comes checked to have the example's shape."""
    sizes = {}
    graph = model.graph
    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        value = given.get(str(node.target))
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        shape = (None if value.shape[0] == batch else value.shape[0], *value.shape[1:])
        if shape == (None,):
            continue
        name = _free(model, f"sizes_of_{node.target}")
        model.add_module(name, FixedSizes(str(node.target), shape))
        with graph.inserting_after(node):
            checked = graph.call_module(name, (node,))
        inherit(checked, node)
        node.replace_all_uses_with(checked, delete_user_cb=lambda user, checked=checked: user is not checked)
        sizes[str(node.target)] = shape
    model.recompile()
    return model, sizes
