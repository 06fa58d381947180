"""From a captured graph to the records of `ir`.

Convolutions, linear layers, batch norms and rectifiers become records in float64 (`converters`); everything else keeps
its aten operation.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx, nn

from layercollapse.compiler.frontend.converters import read
from layercollapse.compiler.frontend.elementwise import weighted_sum
from layercollapse.compiler.frontend.flattening import flattened
from layercollapse.compiler.frontend.model import Model
from layercollapse.compiler.ir.arguments import argument, fixed, rank
from layercollapse.compiler.ir.graph import Net
from layercollapse.compiler.ir.names import identifier
from layercollapse.compiler.ir.records import Activation, Affine, ChannelAffine, Op, Origin
from layercollapse.graph.aten import does, example_shape, module_path, packet
from layercollapse.graph.capture import Capture, channel_dims
from layercollapse.graph.meta import DTYPE, OPEN, ORIGIN, SHAPE, VALUE, WRITTEN
from layercollapse.graph.operations import Does

aten = torch.ops.aten

# How torch writes the end of a slice that has none.
_END = 2**63 - 1


def lower(capture: Capture, model: nn.Module, untouched: Collection[str] = ()) -> Net:
    """Rewrite a captured graph into records, with the model's present values.

    Args:
        capture: of the model.
        model: where the tensors are read; it is not changed.
        untouched: captured nodes that keep their operation, so that no pass can touch them: see `written_anew`.

    Returns:
        A net that computes what the model computes in evaluation mode.
    """
    return _Lowering(capture, model, untouched).run()


def written_anew(net: Net) -> dict[str, str]:
    """The captured nodes that became layers or scales -> the names of these, in the order of the network."""
    return {
        ORIGIN[node]: str(node.target) for node in net.graph.nodes if isinstance(net.op(node), Affine | ChannelAffine)
    }


class _Lowering:
    def __init__(self, capture: Capture, model: nn.Module, untouched: Collection[str]) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        state = {**buffers, **parameters, **capture.constants}
        self.capture, self.untouched = capture, untouched
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = set(parameters)
        self.context = Model(
            values={name: state[target].detach() for name, target in capture.tensors.items()},
            names=capture.tensors,
            sites={site.node: site for site in capture.sites},
            dims=channel_dims(capture.graph),
            origins={n: _origin(parameters.get(t), t in buffers) for n, t in capture.tensors.items()},
        )
        self.net = Net(fx.Graph(), capture.out_spec)
        self.net.memory = capture.memory
        self.net.frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
        self.net.buffers = set(buffers)
        self.net.trains = len(self.net.frozen) < len(parameters)
        self.new: dict[fx.Node, fx.Node] = {}

    def run(self) -> Net:
        graph = self.net.graph
        for node in self.capture.graph.nodes:
            if node.op == "placeholder" and node.name not in self.context.values:
                self._put(node, graph.placeholder(node.name))
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                graph.output(fx.map_arg(node.args[0], self._mapped))
        self.net.sweep()
        return self.net

    def _call(self, node: fx.Node) -> None:
        if node in WRITTEN:
            for old, target, *parts in WRITTEN[node]:
                self._put(old, self.net.graph.call_function(target, *fx.map_arg(parts, self._mapped)))
            self.new[node] = self.new[WRITTEN[node][-1][0]]
            return
        first = argument(node, 0)
        if _nothing(node) or (node.target is operator.getitem and self._is_norm(first)):
            self.new[node] = self._mapped(first)
            return
        if (written := _written(node)) is not None:
            self.new[node] = self._mapped(written)
            return
        if (pieces := _pieces(node)) is not None:
            dim, ends = pieces
            whole, part = fx.map_arg(node.args[:2], self._mapped)
            rest = [self.net.graph.call_function(aten.slice.Tensor, (whole, dim, *end)) for end in ends]
            self._put(node, self.net.graph.call_function(aten.cat.default, ([rest[0], part, *rest[1:]], dim)))
            return
        if (whole := flattened(node)) is not None:
            new = self._mapped(whole)
            if rank(whole) == 2:
                self.new[node] = new
            else:
                self._put(node, self.net.graph.call_function(aten.flatten.using_ints, (new, 1)))
            return
        free = node.name not in self.untouched
        if free and (total := weighted_sum(node, self.context)) is not None:
            x, y, scale = total
            part = self._record(f"{node.name}_part", scale, y)
            ORIGIN[part] = node.name
            SHAPE[part] = example_shape(VALUE.get(y))
            self._put(node, self.net.graph.call_function(aten.add.Tensor, (self._mapped(x), part)))
            return
        reading = read(node, self.context) if free else None
        if reading is None:
            arguments, keywords = fx.map_arg(node.args, self._mapped), fx.map_arg(node.kwargs, self._mapped)
            # What a layer gives lies in memory as its weights do, or its input: a view that fits the one may not fit
            # the other.
            called = aten.reshape.default if node.target is aten.view.default else node.target
            self._put(node, self.net.graph.call_function(called, arguments, keywords))  # type: ignore[arg-type]
            return
        op, source = reading
        self._put(node, self._record(identifier(_path(node, op, self.modules)), op, source))
        ORIGIN[self.new[node]] = node.name
        if packet(node) is aten._native_batch_norm_legit_no_training:
            SHAPE[self.new[node]] = SHAPE[self.new[source]]

    def _record(self, path: str, op: Op, source: fx.Node) -> fx.Node:
        target = _free(self.net, path)
        self.net.ops[target] = op
        return self.net.graph.call_module(target, (self._mapped(source),))

    def _is_norm(self, node: fx.Node) -> bool:
        """Whether a node was a native batch norm, of whose three results only the first has a meaning here."""
        return packet(node) is aten._native_batch_norm_legit_no_training and self.new[node].op == "call_module"

    def _put(self, node: fx.Node, new: fx.Node) -> None:
        self.new[node] = new
        value = VALUE.get(node)
        SHAPE[new] = example_shape(value)
        if isinstance(value, Tensor):
            DTYPE[new] = value.dtype
            OPEN[new] = {dim for dim, size in enumerate(value.shape) if fixed(size) is None}

    def _mapped(self, node: fx.Node) -> fx.Node:
        """The new node for an old one; a tensor of the model becomes an attribute where it is first used."""
        if node not in self.new:
            name = identifier(self.capture.tensors[node.name])
            self.net.tensors[name] = self.context.values[node.name]
            if self.capture.tensors[node.name] in self.parameters:
                self.net.parameters.add(name)
            self._put(node, self.net.graph.get_attr(name))
        return self.new[node]


def _origin(parameter: nn.Parameter | None, buffer: bool) -> Origin:
    if buffer:
        return Origin.BUFFER
    # A constant that is neither may be the cached value of a parametrized weight.
    return Origin.TRAINED if parameter is None or parameter.requires_grad else Origin.FROZEN


def _nothing(node: fx.Node) -> bool:
    """Whether a call returns its first argument, values and memory layout alike."""
    if does(node) is Does.DROPOUT:
        return not argument(node, 2, False)
    if does(node) is Does.PAD:
        return not any(node.args[1])  # type: ignore[arg-type]
    return does(node) is Does.SAME and packet(node) is not aten.contiguous and not node.kwargs


def _written(node: fx.Node) -> fx.Node | None:
    """What an assignment to a part (``x[:, 0] = y``) writes there, if it is of the part's shape and dtype.

    The copy that stands for it in a functional graph has no gradient.
    """
    if packet(node) is not aten.copy or node.kwargs:
        return None
    part, values = (VALUE[x] for x in node.args[:2])
    same = part.dtype == values.dtype and example_shape(part) == example_shape(values)
    return node.args[1] if same and part.device == values.device else None  # type: ignore[return-value]


def _pieces(node: fx.Node) -> tuple[int, list[tuple[int, int]]] | None:
    """The dimension of a written slice of a complex tensor, and where what is left of it starts and ends.

    torch has no gradient of it: the call alone is an error outside `no_grad`.
    """
    if packet(node) is not aten.slice_scatter or node.kwargs or not VALUE[node].is_complex():
        return None
    dim, start, end, step = (argument(node, at, default) for at, default in ((2, 0), (3, None), (4, None), (5, 1)))
    start, end = start or 0, _END if end is None else end
    if step != 1 or not isinstance(dim, int) or not isinstance(start, int) or not isinstance(end, int):
        return None
    return dim, [(0, start)] + ([] if end == _END else [(end, _END)])


def _path(node: fx.Node, op: Op, modules: Mapping[str, nn.Module]) -> str:
    """Where the emitted module stands: where its weight stood, or its rectifier module, or beside a functional call."""
    if isinstance(op, Affine) and op.source is not None:
        return op.source[0].rpartition(".")[0] or node.name
    path = module_path(node)
    # A module from an exported program has its calls in its own graph, and none of the modules that made them.
    module = modules.get(path)
    if path and (module is None or next(module.children(), None) is None):
        return path
    kind = op.kind if isinstance(op, Activation) else node.name
    return f"{path}.{kind}" if path else kind


def _free(net: Net, path: str) -> str:
    """The path, or the path with the smallest suffix that no record has yet: a module called twice is two records."""
    target, count = path, 1
    while target in net.ops:
        count += 1
        target = f"{path}_{count}"
    return target
