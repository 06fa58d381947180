"""The table of aten operations: what each does to the channels of its tensor.

One row for an operation. What feeds a site (`feeding`), where channels lie (`moves`, `graph`, `watch`), what constants
and dead channels pass (`collapse.carry`, `collapse.facts`) and what bounds pass (`collapse.moving`) read it, so that
they agree. An operation without a row stops all of them, and is named where that leaves a site without weights.
"""

from __future__ import annotations

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
    CAST = "gives what it gets, in another dtype"
    RESHAPE = "keeps the order of the entries: the channels keep a dimension, share one, or become several"
    PERMUTE = "moves dimensions"
    SLICE = "takes some positions of a dimension, its second argument"
    SPLIT = "takes a dimension, its last argument, apart"
    UNBIND = "takes every position of a dimension apart"
    REPEAT = "repeats entries"
    SELECT = "takes entries of one tensor, from anywhere"
    JOIN = "puts tensors behind each other along a dimension"
    STACK = "puts tensors behind each other along a new dimension"
    PAD = "adds a border"
    MAXIMUM = "gives the largest of some positions, channel by channel"
    AVERAGE = "gives averages of some positions, channel by channel"
    INTERPOLATE = "gives averages of neighbouring positions, at more or fewer of them, channel by channel"
    RESAMPLE = "as an interpolation, of weights that sum to 1, some of which are negative"
    REDUCE = "joins the entries of dimensions, its second argument, to one"
    FUNCTION = "computes every entry from one entry"
    GATE = "computes numbers of a bounded range: in a product, how much of the other factor passes"
    SHARE = "as a gate, of numbers that sum to 1 along a dimension"
    SUM = "adds tensors or numbers, entry by entry"
    PRODUCT = "multiplies or divides tensors or numbers, entry by entry"
    COMBINE = "computes every entry from an entry of each tensor"
    NORM = "subtracts means, divides by deviations"
    MIX = "computes entries from many, in another way"
    # These do not feed.
    TABLE = "reads rows of a table"
    SIZE = "reads the shape alone"


class Operation(NamedTuple):
    """A row.

    Attributes:
        name: of the aten operation, and of the function or method of torch; ``{}`` stands for 1, 2 and 3 dimensions.
        does: see `Does`.
        view: whether its result may lie in the memory of its first argument.
        any_size: whether it does the same for maps of every height and width.
        dim: channel dimension of its result, 1 or -1, where it decides that.
        places: positions of the input and the weight of a layer.
    """

    name: str
    does: Does
    view: bool = False
    any_size: bool = False
    dim: int | None = None
    places: tuple[int, int] | None = None


def _row(does: Does, **columns: Any) -> Any:
    return lambda *names: [Operation(name, does, **columns) for name in names]


TABLE: tuple[Operation, ...] = (
    *_row(Does.LAYER, dim=1, places=(0, 1))("conv{}d", "convolution", "conv_transpose{}d"),
    *_row(Does.LAYER, dim=-1, places=(0, 1))("linear", "mm", "matmul", "bmm", "_grouped_mm"),
    *_row(Does.LAYER, dim=-1, places=(1, 2))("addmm", "baddbmm"),
    *_row(Does.SAME, view=True)("contiguous", "alias", "detach", "dropout", "feature_dropout"),
    *_row(Does.SAME)("clone", "lift_fresh_copy"),
    *_row(Does.CAST, view=True)("to", "type_as"),
    *_row(Does.CAST)("_to_copy"),
    *_row(Does.RESHAPE, view=True, any_size=True)("flatten", "squeeze"),
    *_row(Does.RESHAPE, view=True)(
        "view", "reshape", "_unsafe_view", "view_as", "reshape_as", "unflatten", "unsqueeze"
    ),
    *_row(Does.PERMUTE, view=True)("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"),
    *_row(Does.PERMUTE, view=True)("mT", "numpy_T"),
    *_row(Does.SLICE, view=True)("select", "slice", "narrow"),
    *_row(Does.SLICE)("index_select"),
    *_row(Does.SPLIT, view=True)("chunk", "split", "split_with_sizes", "tensor_split"),
    *_row(Does.UNBIND, view=True)("unbind"),
    *_row(Does.REPEAT, view=True)("expand", "expand_as"),
    *_row(Does.REPEAT)("repeat", "tile", "repeat_interleave"),
    *_row(Does.SELECT)("index", "gather", "take_along_dim", "flip", "roll", "pixel_shuffle", "pixel_unshuffle"),
    *_row(Does.SELECT)("channel_shuffle", "unfold"),
    *_row(Does.SELECT, view=True)("diagonal"),
    *_row(Does.JOIN)("cat", "concat", "concatenate"),
    *_row(Does.STACK)("stack", "hstack", "vstack", "dstack"),
    *_row(Does.PAD)("pad", "constant_pad_nd", "reflection_pad{}d", "replication_pad{}d"),
    *_row(Does.MAXIMUM)("max_pool{}d", "adaptive_max_pool{}d", "max_pool2d_with_indices", "max_pool3d_with_indices"),
    *_row(Does.AVERAGE)("avg_pool{}d", "adaptive_avg_pool{}d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *_row(Does.INTERPOLATE)("upsample_nearest{}d", "_upsample_nearest_exact{}d", "upsample_linear1d"),
    *_row(Does.INTERPOLATE)("upsample_bilinear2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa"),
    *_row(Does.RESAMPLE)("upsample_bicubic2d", "_upsample_bicubic2d_aa"),
    *_row(Does.REDUCE, any_size=True)("mean", "amax"),
    *_row(Does.REDUCE)("sum", "amin", "max", "min", "median", "logsumexp", "prod", "std", "var"),
    *_row(Does.FUNCTION, any_size=True)("neg"),
    *_row(Does.FUNCTION)("abs", "exp", "log", "log1p", "pow", "square", "sqrt", "rsqrt", "reciprocal", "erf", "sin"),
    *_row(Does.FUNCTION)("cos", "clamp", "clamp_min", "clamp_max", "softplus", "log_sigmoid", "softshrink", "hardtanh"),
    *_row(Does.FUNCTION)("relu"),
    *_row(Does.GATE)("sigmoid", "hardsigmoid", "tanh"),
    *_row(Does.SHARE)("softmax", "_softmax"),
    *_row(Does.SUM, any_size=True)("add", "sub"),
    *_row(Does.SUM)("rsub", "subtract"),
    *_row(Does.PRODUCT, any_size=True)("mul"),
    *_row(Does.PRODUCT)("div", "multiply", "divide", "true_divide"),
    *_row(Does.COMBINE)("where", "maximum", "minimum", "lerp", "addcmul", "addcdiv", "masked_fill", "copy"),
    *_row(Does.COMBINE)("tril", "triu", "slice_scatter", "select_scatter", "index_put", "im2col"),
    *_row(Does.NORM, dim=1)("batch_norm", "_native_batch_norm_legit_no_training", "group_norm", "native_group_norm"),
    *_row(Does.NORM, dim=1)("instance_norm"),
    *_row(Does.NORM, dim=-1)("layer_norm", "native_layer_norm", "rms_norm"),
    *_row(Does.MIX)("scaled_dot_product_attention", "einsum", "dot", "mv", "outer", "glu", "cumsum"),
    *_row(Does.MIX)("norm", "linalg_vector_norm", "var_mean", "std_mean", "log_softmax"),
    *_row(Does.TABLE)("embedding", "embedding_bag"),
    *_row(Does.SIZE, any_size=True)("sym_size"),
    *_row(Does.SIZE)("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like"),
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


def that(*does: Does) -> set[Any]:
    """The aten operations that do one of these."""
    return {packet for packet, row in OPERATIONS.items() if row.does in does}


# Operations that move, join or drop dimensions: `moves.Move` says where the channels lie then.
MOVES = (Does.RESHAPE, Does.PERMUTE, Does.SLICE, Does.SPLIT, Does.UNBIND, Does.REPEAT, Does.REDUCE)
# Those that keep the dimension of the channels though they change the shape.
RESIZES = (Does.JOIN, Does.PAD, Does.MAXIMUM, Does.AVERAGE, Does.INTERPOLATE, Does.RESAMPLE)
