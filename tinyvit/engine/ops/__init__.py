"""The ops, with NumPy's names and arguments, on Tensors, arrays and numbers.

One file a family, each op with its backward rule beside it. This module is also the namespace `F` that a recorded
sweep computes in.
"""

from tinyvit.engine.ops.elementwise import (
    abs,
    add,
    astype,
    bitwise_and,
    bitwise_or,
    clip,
    cos,
    divide,
    equal,
    erf,
    exp,
    greater,
    greater_equal,
    invert,
    isfinite,
    less,
    less_equal,
    log,
    log1p,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    power,
    sign,
    sin,
    sqrt,
    square,
    subtract,
    tanh,
    to_device,
    where,
    zeros_like,
)
from tinyvit.engine.ops.indexing import getitem, scatter_add, take
from tinyvit.engine.ops.linalg import einsum, matmul
from tinyvit.engine.ops.nn import (
    add_layer_norm,
    cross_entropy,
    drop_path,
    dropout,
    gelu,
    layer_norm,
    linear,
    log_softmax,
    multi_head_attention,
    relu,
    scaled_dot_product_attention,
    sigmoid,
    softmax,
)
from tinyvit.engine.ops.reductions import argmax, logsumexp, max, mean, min, sum, var
from tinyvit.engine.ops.shapes import (
    broadcast_to,
    concatenate,
    expand_dims,
    flip,
    pad,
    reshape,
    split,
    squeeze,
    stack,
    swapaxes,
    transpose,
)

__all__ = [
    "abs", "add", "add_layer_norm", "argmax", "astype", "bitwise_and", "bitwise_or", "broadcast_to", "clip",
    "concatenate", "cos", "cross_entropy", "divide", "drop_path", "dropout", "einsum", "equal", "erf", "exp",
    "expand_dims", "flip", "gelu", "getitem", "greater", "greater_equal", "invert", "isfinite", "layer_norm", "less",
    "less_equal", "linear", "log", "log1p", "log_softmax", "logsumexp", "matmul", "max", "maximum", "mean", "min",
    "minimum", "multi_head_attention", "multiply", "negative", "not_equal", "pad", "power", "relu", "reshape",
    "scaled_dot_product_attention", "scatter_add", "sigmoid", "sign", "sin", "softmax", "split", "sqrt", "square",
    "squeeze", "stack", "subtract", "sum", "swapaxes", "take", "tanh", "to_device", "transpose", "var", "where",
    "zeros_like",
]  # fmt: skip


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"tinyvit.ops has no {name!r}. A backward rule may use only what tinyvit.ops has, also where NumPy has more: "
        "else it cannot be differentiated again"
    )
