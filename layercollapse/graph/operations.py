"""The table of aten operations: one row each, with all that the package knows of it. No other module lists operations
that are of a kind.

What feeds a site (`feeding`), where channels lie (`channel_dims`, `capture`, `watch`), whose memory a tensor is, and
the compiler's analyses read it, so that they agree. An analysis has a transfer function for a `Does`, and for a single
operation only where that has arguments of its own (`compiler.analysis.dataflow`). An operation without a row stops all
of them, and is named where that leaves a site without weights.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, NamedTuple

import torch

aten = torch.ops.aten


class Does(Enum):
    """What an operation does. What gives constants of constants, whatever the positions, feeds: all but the last three.

    "Channel by channel" keeps the dimension of the channels and their number.
    """

    LAYER = "a layer: multiplies by a weight"
    SAME = "gives what it gets"
    DROPOUT = "gives what it gets, in evaluation mode"
    CAST = "gives what it gets, in another dtype"
    RESHAPE = "keeps the order of the entries, in the sizes that its second argument lists"
    FLATTEN = "keeps the order of the entries: joins dimensions, takes one apart, or takes the sizes of another tensor"
    SQUEEZE = "adds or drops dimensions of size one"
    PERMUTE = "moves dimensions"
    SLICE = "takes some positions of a dimension, its second argument"
    SPLIT = "takes a dimension, its last argument, apart"
    UNBIND = "takes every position of a dimension apart"
    EXPAND = "repeats entries along dimensions of size one"
    REPEAT = "repeats entries"
    TURN = "moves the entries along dimensions, its argument `dims`"
    SELECT = "takes entries of one tensor, from anywhere"
    JOIN = "puts tensors behind each other along a dimension"
    STACK = "puts tensors behind each other along a new dimension"
    PAD = "adds a border"
    MAXIMUM = "gives the largest of some positions, channel by channel"
    AVERAGE = "gives averages of some positions, channel by channel"
    INTERPOLATE = "gives averages of neighbouring positions, at more or fewer of them, channel by channel"
    RESAMPLE = "as an interpolation, of weights that sum to 1, some of which are negative"
    MEAN = "averages the entries of dimensions, its second argument"
    EXTREME = "gives the largest or smallest entry of dimensions, its second argument"
    REDUCE = "joins the entries of dimensions, its second argument, to one"
    FUNCTION = "computes every entry from one entry, without a jump"
    GATE = "computes numbers of a bounded range, likewise: in a product, how much of the other factor passes"
    SHARE = "as a gate, of numbers that sum to 1 along a dimension"
    SUM = "adds tensors or numbers, entry by entry"
    PRODUCT = "multiplies or divides tensors or numbers, entry by entry"
    COMBINE = "computes every entry from an entry of each tensor"
    BATCH_NORM = "subtracts means and divides by deviations, by channel"
    NORM = "subtracts means, divides by deviations"
    MIX = "computes entries from many, in another way"
    # These do not feed.
    TABLE = "reads rows of a table"
    SIZE = "reads the shape alone"
    OTHER = "nothing that anyone follows: its row says whose memory its result is"


class Operation(NamedTuple):
    """A row.

    Attributes:
        name: of the aten operation, and of the function or method of torch; ``{}`` stands for 1, 2 and 3 dimensions.
        does: see `Does`.
        view: whether its result may lie in the memory of its first argument.
        shares: whether its result may lie in the memory of any argument though its schema does not say so.
        overlaps: whether several elements of its result may be one place in memory.
        any_size: whether it does the same for maps of every height and width.
        one_size: whether it gives as many positions for maps of every height and width.
        dim: channel dimension of its result, 1 or -1, where it decides that.
        places: positions of the input and the weight of a layer.
        either: whether the weight may be the input, and the input the weight.
        chooses: whether a layer's weight may be what it takes of a tensor, as the data say.
        indexes: whether it reads at positions that a tensor holds: on a GPU one that is too large is an error for good.
        range: lowest and highest number that it gives, whatever it gets.
    """

    name: str
    does: Does
    view: bool = False
    shares: bool = False
    overlaps: bool = False
    any_size: bool = False
    one_size: bool = False
    dim: int | None = None
    places: tuple[int, int] | None = None
    either: bool = False
    chooses: bool = False
    indexes: bool = False
    range: tuple[float, float] | None = None


def _row(does: Does, **columns: Any) -> Any:
    return lambda *names: [Operation(name, does, **columns) for name in names]


TABLE: tuple[Operation, ...] = (
    *_row(Does.LAYER, dim=1, places=(0, 1))("conv{}d", "convolution", "conv_transpose{}d"),
    *_row(Does.LAYER, dim=-1, places=(0, 1))("linear"),
    *_row(Does.LAYER, dim=-1, places=(0, 1), either=True)("mm", "matmul", "bmm", "_grouped_mm"),
    *_row(Does.LAYER, dim=-1, places=(1, 2), either=True)("addmm", "baddbmm"),
    *_row(Does.SAME, view=True)("contiguous", "alias", "detach"),
    *_row(Does.SAME, chooses=True)("clone"),
    *_row(Does.SAME)("lift_fresh_copy"),
    *_row(Does.DROPOUT, view=True)("dropout", "feature_dropout"),
    *_row(Does.CAST, view=True)("to", "type_as"),
    *_row(Does.CAST, chooses=True)("_to_copy"),
    *_row(Does.RESHAPE, view=True)("view", "reshape", "_unsafe_view"),
    *_row(Does.FLATTEN, view=True, any_size=True)("flatten"),
    *_row(Does.FLATTEN, view=True)("unflatten", "view_as", "reshape_as"),
    *_row(Does.SQUEEZE, view=True, any_size=True)("squeeze"),
    *_row(Does.SQUEEZE, view=True)("unsqueeze"),
    *_row(Does.PERMUTE, view=True)("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"),
    *_row(Does.PERMUTE, view=True)("mT", "numpy_T"),
    *_row(Does.SLICE, view=True)("select", "slice", "narrow"),
    *_row(Does.SLICE, chooses=True, indexes=True)("index_select"),
    *_row(Does.SPLIT, view=True)("chunk", "split", "split_with_sizes", "tensor_split"),
    *_row(Does.UNBIND, view=True)("unbind"),
    *_row(Does.EXPAND, view=True, overlaps=True)("expand", "expand_as"),
    *_row(Does.REPEAT)("repeat", "tile", "repeat_interleave"),
    *_row(Does.SELECT, chooses=True, indexes=True)("index"),
    *_row(Does.SELECT, indexes=True)("gather", "take_along_dim"),
    *_row(Does.TURN)("flip", "roll"),
    *_row(Does.SELECT)("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold"),
    *_row(Does.SELECT, view=True)("diagonal"),
    *_row(Does.JOIN)("cat", "concat", "concatenate"),
    *_row(Does.STACK)("stack", "hstack", "vstack", "dstack"),
    *_row(Does.PAD)("pad", "constant_pad_nd", "reflection_pad{}d", "replication_pad{}d"),
    *_row(Does.MAXIMUM)("max_pool{}d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
    *_row(Does.MAXIMUM, one_size=True)("adaptive_max_pool{}d"),
    *_row(Does.AVERAGE)("avg_pool{}d"),
    *_row(Does.AVERAGE, one_size=True)("adaptive_avg_pool{}d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *_row(Does.INTERPOLATE)("upsample_nearest{}d", "_upsample_nearest_exact{}d", "upsample_linear1d"),
    *_row(Does.INTERPOLATE)("upsample_bilinear2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa"),
    *_row(Does.RESAMPLE)("upsample_bicubic2d", "_upsample_bicubic2d_aa"),
    *_row(Does.MEAN, any_size=True, one_size=True)("mean"),
    *_row(Does.EXTREME, any_size=True, one_size=True)("amax"),
    *_row(Does.EXTREME)("amin"),
    *_row(Does.REDUCE)("sum", "max", "min", "median", "logsumexp", "prod", "std", "var"),
    *_row(Does.FUNCTION, any_size=True)("neg"),
    *_row(Does.FUNCTION)("abs", "exp", "log", "log1p", "pow", "square", "sqrt", "rsqrt", "reciprocal", "erf", "sin"),
    *_row(Does.FUNCTION)("cos", "clamp", "clamp_min", "clamp_max", "softplus", "log_sigmoid", "softshrink", "hardtanh"),
    *_row(Does.FUNCTION, range=(0.0, math.inf))("relu"),
    *_row(Does.GATE, range=(0.0, 1.0))("sigmoid", "hardsigmoid"),
    *_row(Does.GATE, range=(-1.0, 1.0))("tanh"),
    *_row(Does.SHARE, range=(0.0, 1.0))("softmax", "_softmax"),
    *_row(Does.SUM, any_size=True)("add", "sub"),
    *_row(Does.SUM)("rsub", "subtract"),
    *_row(Does.PRODUCT, any_size=True)("mul"),
    *_row(Does.PRODUCT)("div", "multiply", "divide", "true_divide"),
    *_row(Does.COMBINE)("where", "maximum", "minimum", "lerp", "addcmul", "addcdiv", "masked_fill", "copy"),
    *_row(Does.COMBINE)("tril", "triu", "slice_scatter", "select_scatter", "index_put", "im2col"),
    *_row(Does.BATCH_NORM, dim=1)("batch_norm", "_native_batch_norm_legit_no_training"),
    *_row(Does.NORM, dim=1)("group_norm", "native_group_norm", "instance_norm"),
    *_row(Does.NORM, dim=-1)("layer_norm", "native_layer_norm", "rms_norm"),
    *_row(Does.MIX)("scaled_dot_product_attention", "dot", "mv", "outer", "glu", "cumsum"),
    *_row(Does.MIX, shares=True)("einsum"),
    *_row(Does.MIX)("norm", "linalg_vector_norm", "var_mean", "std_mean", "log_softmax"),
    *_row(Does.TABLE, indexes=True)("embedding", "embedding_bag"),
    *_row(Does.SIZE, any_size=True)("sym_size"),
    *_row(Does.SIZE)("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like"),
    *_row(Does.OTHER, overlaps=True)("as_strided"),
    *_row(Does.OTHER, shares=True, overlaps=True)("broadcast_tensors", "broadcast_to", "meshgrid"),
    *_row(Does.OTHER, shares=True)("alpha_dropout", "feature_alpha_dropout", "native_dropout", "atleast_{}d"),
    *_row(Does.OTHER, shares=True)("cartesian_prod", "conj_physical", "histogramdd", "sum_to_size"),
    *_row(Does.OTHER, shares=True)("unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"),
    *_row(Does.OTHER, indexes=True)("take"),
)
# As Python calls them, where no aten operation has the name.
SPOKEN: tuple[Operation, ...] = (
    *_row(Does.LAYER, dim=-1)("__matmul__", "__rmatmul__"),
    *_row(Does.SLICE)("__getitem__"),
    *_row(Does.PERMUTE)("__get__"),  # of x.T
    *_row(Does.INTERPOLATE)("interpolate"),
)


def _packets(row: Operation) -> list[Any]:
    names = [row.name.format(dims) for dims in (1, 2, 3)] if "{}" in row.name else [row.name]
    return [getattr(aten, name) for name in names if hasattr(aten, name)]


OPERATIONS: dict[Any, Operation] = {packet: row for row in TABLE for packet in _packets(row)}
BY_NAME: dict[str, Operation] = {
    **{packet.__name__: row for packet, row in OPERATIONS.items()},
    **{row.name: row for row in SPOKEN},
}


NO_ROW = Operation("", Does.OTHER)


def that(*does: Does) -> set[Any]:
    """The aten operations that do one of these."""
    return {packet for packet, row in OPERATIONS.items() if row.does in does}


def having(column: str) -> set[Any]:
    """The aten operations with something in a column of their row."""
    return {packet for packet, row in OPERATIONS.items() if getattr(row, column)}


# Operations that keep the order of the entries.
RESHAPES = (Does.RESHAPE, Does.FLATTEN, Does.SQUEEZE)
# Those that join the entries of dimensions.
REDUCES = (Does.MEAN, Does.EXTREME, Does.REDUCE)
# Those that move, join or drop dimensions: `channel_dims.Move` says where the channels lie then.
MOVES = (*RESHAPES, Does.PERMUTE, Does.SLICE, Does.SPLIT, Does.UNBIND, Does.EXPAND, Does.REPEAT, *REDUCES)
# Those that keep the dimension of the channels though they change the shape.
RESIZES = (Does.JOIN, Does.PAD, Does.MAXIMUM, Does.AVERAGE, Does.INTERPOLATE, Does.RESAMPLE)
