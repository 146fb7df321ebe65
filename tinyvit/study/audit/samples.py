"""The registry of the ops: sample inputs for each, which drive the audit, the tests and the page of ops alike.

A sample is an expression f(F, *inputs). F is tv.ops when it is judged, and NumPy or PyTorch where they are compared.
The inputs keep away from kinks and poles; `KINKS` holds the samples that stand on one.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tinyvit as tv

Maker = Callable[[np.random.Generator], Any]  # draws one input
Prepared = tuple[Callable[..., list[tv.Tensor]], list[tv.Tensor]]  # a function and its inputs


@dataclass(frozen=True)
class Sample:
    """An op, and inputs to examine it with.

    Attributes:
        op: its public name.
        case: shapes and arguments, in words; op and case together are unique.
        f: f(F, *inputs) computes it with the namespace F.
        makers: one an input.
        choice: for a sample on a kink, the gradients of the inputs that the op's documentation promises for gy = 1.

    >>> softplus = Sample("softplus", "3", lambda F, x: F.log(1 + F.exp(x)), (normal(3),))
    >>> softplus(*softplus.tensors())[0].shape
    (3,)
    """

    op: str
    case: str
    f: Callable[..., Any]
    makers: tuple[Maker, ...]
    choice: Any = field(default=None, compare=False)  # lists have no hash

    def __str__(self) -> str:
        return f"{self.op}: {self.case}"

    @property
    def name(self) -> str:
        """What the judge's messages call it."""
        return self.op

    def arrays(self, dtype: Any = np.float64) -> list[np.ndarray]:
        """Fresh inputs, always the same; only floating-point ones are cast."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        made = [np.asarray(make(rng)) for make in self.makers]
        return [a.astype(dtype) if a.dtype.kind == "f" else a for a in made]

    def tensors(self, device: str = "cpu", dtype: Any = np.float64) -> list[tv.Tensor]:
        """The inputs as Tensors; floating-point ones require a gradient, indices and masks cannot."""
        return [tv.tensor(a, device=device, requires_grad=a.dtype.kind == "f") for a in self.arrays(dtype)]

    def prepare(self, device: str = "cpu", dtype: Any = np.float64) -> Prepared:
        """A function of Tensors, and fresh inputs for it."""
        return self, self.tensors(device, dtype)

    def __call__(self, *inputs: Any, F: Any = tv.ops) -> list[Any]:
        """All results, as a list."""
        outputs = self.f(F, *inputs)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


# -------------------------------------------------------------------------------------------------------------- inputs


def normal(*shape: int) -> Maker:
    """From a normal distribution."""
    return lambda rng: rng.standard_normal(shape)


def positive(*shape: int) -> Maker:
    """Between 0.5 and 2."""
    return lambda rng: rng.uniform(0.5, 2, shape)


def nonzero(*shape: int) -> Maker:
    """At least 0.2 away from zero, either sign."""
    return lambda rng: rng.uniform(0.2, 2, shape) * rng.choice([-1.0, 1.0], shape)


def distinct(*shape: int) -> Maker:
    """No two elements nearer than 0.1, so that max has no ties."""
    return lambda rng: (rng.permutation(int(np.prod(shape))).reshape(shape) - np.prod(shape) // 2) * 0.11 + 0.02


def given(values: Any, dtype: Any = None) -> Maker:
    """These values."""
    return lambda rng: np.array(values, dtype=dtype)


# ------------------------------------------------------------------------------------------------------------ registry

SAMPLES: list[Sample] = []
KINKS: list[Sample] = []


def sample(op: str, *inputs: Any, case: str = "", f: Any = None, choice: Any = None, **arguments: Any) -> None:
    """Register f(F, *inputs), by default F.op(*inputs, **arguments); an input is a shape, or a maker of arrays."""
    makers = tuple(x if callable(x) else normal(*x) for x in inputs)
    shapes = " ".join(str(m(np.random.default_rng(0)).shape).replace(" ", "") for m in makers)
    facts = [shapes, *(f"{name}={value}" for name, value in arguments.items()), case]
    call = f or functools.partial(_call, op, arguments)
    (KINKS if choice else SAMPLES).append(Sample(op, " ".join(filter(None, facts)), call, makers, choice))


def _call(op: str, arguments: dict[str, Any], F: Any, *inputs: Any) -> Any:
    return getattr(F, op)(*inputs, **arguments)


axis: Any
subscripts: Any

# Elementwise, one argument
for shape in [(2, 3), (), (0, 3)]:
    for op in ["negative", "square", "exp", "sin", "cos", "tanh", "erf", "sigmoid", "zeros_like"]:
        sample(op, shape)
    for op in ["log", "log1p", "sqrt"]:
        sample(op, positive(*shape))
    for op in ["abs", "sign", "relu"]:
        sample(op, nonzero(*shape))
    for form in ["none", "tanh", "quick"]:
        sample("gelu", shape, approximate=form)
    sample("astype", shape, dtype="float64")
    sample("clip", distinct(*shape), f=lambda F, x: F.clip(x, -0.25, 0.25), case="-0.25 … 0.25")
    sample("to_device", shape, f=lambda F, x: F.to_device(x, getattr(x, "device", "cpu")), case="where it is already")
sample("clip", distinct(5), f=lambda F, x: F.clip(x, None, 0.0), case="no lower bound")
sample("clip", distinct(5), f=lambda F, x: F.clip(x, 0.0, None), case="no upper bound")
sample("clip", nonzero(2, 3), given([-1, 0, -9], "int8"), f=lambda F, x, low: F.clip(x, low, 1.1), case="array bounds")
sample("erf", given([0.0, 0.99, 1.01, -3.5, 6.5]), case="each branch")
sample("gelu", given([-1000.0, -25.0, 25.0, 1000.0]), approximate="tanh", case="far out")

# Elementwise, two arguments
PAIRS = [
    ((2, 3), (2, 3)),
    ((2, 3), (3,)),
    ((2, 1, 3), (4, 1)),
    ((), (2, 3)),
    ((2, 3), (1, 1)),
    ((), ()),
    ((0, 3), (1, 3)),
]
for left, right in PAIRS:
    for op in ["add", "subtract", "multiply"]:
        sample(op, left, right)
    sample("divide", left, nonzero(*right))
    sample("power", positive(*left), right)
    for op in ["maximum", "minimum"]:
        sample(op, distinct(*left), lambda rng, shape=right: distinct(*shape)(rng) + 0.05)
for op in ["add", "subtract", "multiply", "divide", "maximum", "minimum", "power"]:
    sample(op, positive(2, 3), f=lambda F, x, op=op: getattr(F, op)(x, x), case="an argument given twice")
    sample(op, positive(2, 3), f=lambda F, x, op=op: getattr(F, op)(x, 2.2), case="a number on the right")
    sample(op, positive(2, 3), f=lambda F, x, op=op: getattr(F, op)(2.2, x), case="a number on the left")
for exponent in [2, 3, 0, 1, -1, 0.5, 2.0]:
    sample("power", positive(3), f=lambda F, x, p=exponent: F.power(x, p), case=f"exponent {exponent!r}")
sample("power", nonzero(4), f=lambda F, x: F.power(x, 3), case="negative base, whole exponent")
sample(
    "power", given([0.0, 0.0, 0.0, 2.0]), given([0, 1, 2, 0], "int8"), case="zeros in base and in a constant exponent"
)
sample("power", given([0.0, 2.0, -1.5]), f=lambda F, x: F.power(x, 0), case="a base of zero, exponent 0")
sample("power", positive(3), f=lambda F, x: F.power(0.0, x), case="the number 0 as base")
sample("power", positive(3), f=lambda F, x: F.power(0.5, x), case="a number below 1 as base")
sample("power", given([0, 1, 3], "int8"), positive(3), case="zeros in a constant base")
for op in ["abs", "relu"]:
    sample(op, given([[-0.5, 1.5, -2.0], [0.7, -0.4, 1.0]]), case="other signs")
sample("relu", given([[0.5, 1.5, 2.0], [0.7, 0.4, 1.0]]), case="all above 0")
sample("where", given([[True, False, True], [False, True, False]]), (2, 3), (2, 3))
sample("where", given([True, False, True]), (2, 1), (3,))
sample("where", given([False, True, False]), (2, 1), (3,), case="the other way")
sample("where", given([True, False]), (2,), f=lambda F, c, x: F.where(c, x, 0.5), case="a number where false")
sample("where", given([True, False]), (2,), f=lambda F, c, x: F.where(c, 0.5, x), case="a number where true")
sample("where", given([True, False]), (2,), f=lambda F, c, x: F.where(c, x, x), case="an argument given twice")
sample("where", given(True), (), ())
sample("where", given(np.zeros((0, 1), bool)), (0, 3), (3,))

# Reductions
for op in ["sum", "mean", "var", "max", "min", "logsumexp"]:
    values = distinct(2, 3, 2) if op in ("max", "min") else normal(2, 3, 2)
    for axis in [None, 0, 1, -1, (0, 2), (-1, 0), (0, 1, 2)]:
        sample(op, values, axis=axis)
    for axis in [None, 1, (-1, 0)]:
        sample(op, values, axis=axis, keepdims=True)
    sample(op, distinct())
for op in ["sum", "mean", "var", "logsumexp"]:
    sample(op, (0, 3), axis=1)
sample("sum", (0, 3), axis=0)
for op in ["max", "min"]:
    sample(op, (0, 3), axis=1)
    sample(op, distinct(3), f=lambda F, x, op=op: getattr(F, op)(F.concatenate([x, x])), case="every element twice")
sample(
    "logsumexp", (2, 3), given([[True, False, True], [False] * 3]), case="masked, one row wholly",
    f=lambda F, x, m: F.exp(F.logsumexp(F.where(m, x, -np.inf) + x, axis=-1)),
)  # fmt: skip
sample("sum", (2, 3), axis=())
for axis in [None, 0, (0, -1)]:
    sample("var", (3, 2, 2), axis=axis, ddof=1)
for op in ["softmax", "log_softmax"]:
    for axis in [-1, 0, 1, (0, 1)]:
        sample(op, (2, 3), axis=axis)
    sample(op, (0, 3))
    sample(op, (3,))

# Shapes
for shape, target in [
    ((2, 3), (3, 2)),
    ((2, 3), -1),
    ((2, 3), (1, -1, 2)),
    ((1, 1), ()),
    ((), (1, 1)),
    ((0, 3), (3, 0)),
]:
    sample("reshape", shape, shape=target)
for axes in [None, (1, 0, 2), (2, 0, 1), (-1, 0, -2)]:
    sample("transpose", (2, 3, 1), axes=axes)
sample("transpose", ())
sample("transpose", (0, 3))
sample("swapaxes", (0, 3), axis1=0, axis2=1)
sample("expand_dims", (), axis=0)
sample("expand_dims", (0, 3), axis=1)
sample("squeeze", ())
sample("squeeze", (0, 1), axis=1)
sample("flip", ())
sample("flip", (0, 3), axis=0)
sample("pad", (0, 2), pad_width=((0, 0), (1, 0)))
sample("split", (0, 2), indices_or_sections=2, axis=1)
sample("stack", (0, 2), (0, 2), f=lambda F, a, b: F.stack([a, b], 1), case="empty")
for first, second in [(0, 1), (-1, 0), (1, 1)]:
    sample("swapaxes", (2, 3, 2), axis1=first, axis2=second)
for axis in [0, -1, (0, 2), (-1, 1)]:
    sample("expand_dims", (2, 3), axis=axis)
for axis in [None, 0, -1, (0, 2)]:
    sample("squeeze", (1, 3, 1), axis=axis)
sample("squeeze", (2, 1, 2), axis=1)
for shape, target in [
    ((3,), (2, 3)),
    ((2, 1, 3), (4, 2, 2, 3)),
    ((), (2, 2)),
    ((1,), (0,)),
    ((0, 1), (2, 0, 3)),
    ((2, 3), (2, 3)),
]:
    sample("broadcast_to", shape, shape=target)
for axis in [None, 0, -1, (0, -1)]:
    sample("flip", (2, 3, 2), axis=axis)
for width in [0, 1, (1, 2), (2,), ((1, 0), (0, 2)), ((1, 2),), ((1,), (2,))]:
    sample("pad", (2, 3), pad_width=width)
sample("pad", (), pad_width=0)
sample("pad", (2,), pad_width=1, constant_values=7.0)
sample("pad", (2,), f=lambda F, x: F.pad(x, np.int64(1)), case="a NumPy integer")
for axis in [0, 1, -1]:
    sample(
        "concatenate", (2, 3), (2, 3), f=lambda F, a, b, axis=axis: F.concatenate([a, b, a], axis), case=f"axis={axis}"
    )
    sample("stack", (2, 3), (2, 3), f=lambda F, a, b, axis=axis: F.stack([a, b, a], axis), case=f"axis={axis}")
sample("concatenate", (2, 3), (0, 3), (1, 3), f=lambda F, *parts: F.concatenate(parts), case="unequal and empty")
sample("concatenate", (2,), f=lambda F, a: F.concatenate([a]), case="a single array")
sample("concatenate", (2, 1), (3,), f=lambda F, a, b: F.concatenate([a, b], axis=None), case="axis=None")
sample("stack", (), (), f=lambda F, a, b: F.stack([a, b]), case="numbers")
sample("split", (6, 2), indices_or_sections=3)
sample("split", (2, 6), indices_or_sections=[1, 1, 4], axis=-1)
sample("split", (2, 4), f=lambda F, x: F.split(x, 4, axis=1)[2], case="one part used")
sample("split", (4,), f=lambda F, x: [p * p for p in F.split(x, [3])[::-1]], case="parts used out of order")

# Indexing
X = (3, 2, 4)
BASIC = [
    0, -1, slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(2, 0, -1), slice(5, 9), None, ..., (),
    (1, 0, -2), (..., 0), (1, ..., None), (None, slice(1, 3), ..., slice(None, None, -2)), (slice(None), None, 1),
    np.int64(1),
]  # fmt: skip
for index in BASIC:
    sample("getitem", X, f=lambda F, x, i=index: F.getitem(x, i), case=str(index))
for case, index in {
    "a list with duplicates": [0, 2, 0],
    "a tuple with duplicates inside the index": ((0, 2, 0),),
    "a tuple with duplicates beside a slice": (slice(None), (1, 1)),
    "a list of bools": [True, False, True],
    "True": True,
    "False": False,
}.items():
    sample("getitem", X, f=lambda F, x, i=index: F.getitem(x, i), case=case)
sample("getitem", (), f=lambda F, x: F.getitem(x, (None, ...)), case="a number")
sample("getitem", (0, 2), f=lambda F, x: F.getitem(x, (slice(None), 1)), case="of nothing")
INDEX = given([2, 0, 2, -1], int)
sample("getitem", X, INDEX, f=lambda F, x, i: F.getitem(x, i), case="integers with duplicates")
sample("getitem", X, given([[0, 1], [1, -3]], int), f=lambda F, x, i: F.getitem(x, i), case="a matrix of integers")
sample("getitem", X, given(1, int), f=lambda F, x, i: F.getitem(x, i), case="a 0-d integer array")
sample("getitem", X, given([], int), f=lambda F, x, i: F.getitem(x, i), case="no integers")
sample("getitem", X, INDEX, f=lambda F, x, i: F.getitem(x, (slice(None, 2), ..., i)), case="slice and integers")
sample("getitem", X, INDEX, f=lambda F, x, i: F.getitem(x, (i, 1)), case="integers and a number")
sample("getitem", X, INDEX, f=lambda F, x, i: F.getitem(x, (i, slice(None), i)), case="integers around a slice")
sample("getitem", X, INDEX, f=lambda F, x, i: F.getitem(x, (i, None, 0, i)), case="integers around None")
sample(
    "getitem", X, INDEX, given([[1], [0]], int), f=lambda F, x, i, j: F.getitem(x, (i, j)), case="two broadcast arrays"
)
sample("getitem", X, given([True, False, True]), f=lambda F, x, m: F.getitem(x, m), case="a mask of the first axis")
sample(
    "getitem", X, given([True, False]), f=lambda F, x, m: F.getitem(x, (slice(None), m, 0)), case="a mask in the middle"
)
sample("getitem", (2, 2), given([[True, False], [True, True]]), f=lambda F, x, m: F.getitem(x, m), case="a full mask")
sample("scatter_add", (4,), INDEX, f=lambda F, v, i: F.scatter_add(v, i, (3,)), case="duplicates")
sample("scatter_add", (4,), given([1, 1, 0, 2], int), f=lambda F, v, i: F.scatter_add(v, i, (3,)), case="others")
sample("scatter_add", (2, 4), INDEX, f=lambda F, v, i: F.scatter_add(v, (slice(None), i), (2, 3)), case="mixed")
sample("scatter_add", (2, 2), f=lambda F, v: F.scatter_add(v, (..., slice(1, 3)), (2, 4)), case="a slice")
sample("scatter_add", (), INDEX, f=lambda F, v, i: F.scatter_add(v, i, (3,)), case="a number everywhere")
sample("scatter_add", (0,), given([], int), f=lambda F, v, i: F.scatter_add(v, i, (3,)), case="nothing")
for axis in [None, 0, -1]:
    sample("take", (3, 3), INDEX, axis=axis)
sample("take", (2, 3), given([[0, 1], [1, 1]], int), axis=1)
sample("take", (3,), f=lambda F, x: F.take(x, (2, 2, 0), axis=0), case="a tuple with duplicates")
sample("take", (), f=lambda F, x: F.take(x, (0, 0)), case="a number twice")
sample("take", (0, 3), INDEX, axis=1)

# Matrix products
for left, right in [
    ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 2)), ((3,), (2, 3, 2)), ((2, 2, 3), (3,)),
    ((2, 2, 3), (3, 2)), ((2, 3), (2, 3, 2)), ((2, 2, 3), (2, 3, 2)), ((2, 2, 3), (1, 3, 2)), ((1, 2, 3), (2, 3, 1)),
    ((2, 1, 2, 3), (2, 3, 1)), ((2, 1, 2, 3), (3,)), ((3,), (2, 1, 3, 2)), ((2, 1, 2, 3), (3, 2)),
    ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 0, 3), (3, 2)), ((0, 2, 3), (3,)),
]:  # fmt: skip
    sample("matmul", left, right)
sample("matmul", (2, 2), f=lambda F, a: F.matmul(a, a), case="an argument given twice")
sample("matmul", (3,), f=lambda F, a: F.matmul(a, a), case="a vector given twice")
for subscripts, *operands in [
    ("ij,jk->ik", (2, 3), (3, 2)), (" ij , kj -> ki ", (2, 3), (2, 3)), ("bnd,bmd->bnm", (2, 2, 3), (2, 1, 3)),
    ("bhnd,bhmd->bhnm", (1, 2, 2, 3), (1, 2, 3, 3)), ("ij->ji", (2, 3)), ("ij->i", (2, 3)), ("ij->", (2, 3)),
    ("i->i", (3,)), ("i,j->ij", (2,), (3,)), ("ij,ij->", (2, 3), (2, 3)), ("ij,jk,kl->il", (2, 2), (2, 3), (3, 2)),
    ("ij,k->i", (2, 3), (2,)), (",ij->ij", (), (2, 3)), ("i,i,i->i", (3,), (3,), (3,)), ("ij,j->", (0, 3), (3,)),
    ("ij,ij->j", (1, 3), (2, 3)),
]:  # fmt: skip
    sample("einsum", *operands, f=lambda F, *xs, s=subscripts: F.einsum(s, *xs), case=subscripts)
sample("einsum", (2, 3), f=lambda F, a: F.einsum("ij,kj->ik", a, a), case="an argument given twice")

# Neural networks
for shape in [(3,), (2, 3), (2, 2, 3), (0, 3)]:
    sample("linear", shape, (2, 3), (2,))
    sample("linear", shape, (2, 3))
    sample("layer_norm", shape, (3,), (3,))
    sample("add_layer_norm", shape, shape, (3,), (3,))
sample("layer_norm", (2, 4), (4,), (4,), eps=0.5)
sample("layer_norm", given([[300.0, -200.0, 90.0]]), (3,), (3,), case="squares that float16 does not hold")
sample("layer_norm", (4,), f=lambda F, x: F.layer_norm(x, x, x), case="an argument given thrice")
sample("layer_norm", (4,), f=lambda F, x: F.layer_norm(F.sin(x), x, x * x), case="arguments made of one another")
sample("add_layer_norm", (2, 4), (2, 4), (4,), (4,), eps=0.5)
sample("add_layer_norm", (2, 4), (2, 4), (4,), (4,), f=lambda F, *inputs: F.add_layer_norm(*inputs)[1], case="the norm")
sample("add_layer_norm", given([[300.0, -200.0, 90.0]]), (1, 3), (3,), (3,), case="squares that float16 does not hold")
sample("add_layer_norm", (4,), f=lambda F, x: F.add_layer_norm(x, x * x, x, F.sin(x)),
       case="arguments made of one another")  # fmt: skip
for q, k, v in [
    ((2, 3), (3, 3), (3, 2)), ((2, 1, 2), (2, 2, 2), (2, 2, 3)), ((2, 1, 2, 2), (2, 1, 2, 2), (2, 1, 2, 2)),
    ((2, 2, 2), (3, 2), (1, 3, 2)), ((0, 2, 2), (0, 2, 2), (0, 2, 2)),
]:  # fmt: skip
    sample("scaled_dot_product_attention", q, k, v)
sample("scaled_dot_product_attention", (2, 2), (3, 2), (3, 1), scale=1.5)
sample("scaled_dot_product_attention", (2, 2), (3, 2), (3, 1), scale=0.5)
sample(
    "scaled_dot_product_attention",
    (3, 2),
    case="arguments made of one another",
    f=lambda F, x: F.scaled_dot_product_attention(x, F.tanh(x), x * x),
)
sample("scaled_dot_product_attention", (3, 2), (3, 2), case="q is k",
       f=lambda F, q, v: F.scaled_dot_product_attention(q, q, v))  # fmt: skip
sample("scaled_dot_product_attention", (3, 2), case="q is k is v",
       f=lambda F, x: F.scaled_dot_product_attention(x, x, x))  # fmt: skip
for qkv, num_heads in [((2, 3, 6), 1), ((2, 3, 12), 2), ((1, 2, 9), 3), ((2, 1, 12), 2), ((0, 2, 6), 2)]:
    sample("multi_head_attention", qkv, num_heads=num_heads)
sample("multi_head_attention", (2, 2, 4), case="q is k is v, 2 heads",
       f=lambda F, x: F.multi_head_attention(F.concatenate([x, x, x], -1), 2))  # fmt: skip
sample(
    "multi_head_attention",
    (1, 3, 4),
    case="q, k and v made of one another, 2 heads",
    f=lambda F, x: F.multi_head_attention(F.concatenate([x, F.tanh(x), x * x], -1), 2),
)
CLASSES, SOFT = given([2, 0], int), given([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
for reduction in ["mean", "sum", "none"]:
    for smoothing in [0.0, 0.1]:
        sample("cross_entropy", (2, 3), CLASSES, label_smoothing=smoothing, reduction=reduction)
        sample("cross_entropy", (2, 3), SOFT, label_smoothing=smoothing, reduction=reduction)
sample("cross_entropy", (2, 2, 3), given([[0, 1], [2, 2]], int), case="a class a token")
sample("cross_entropy", (3,), given(1, int), case="one row")
sample("cross_entropy", given([[900.0, -900.0, 0.0]] * 2), given([0, 2], int), case="scores far apart")
sample("cross_entropy", (2, 3), (2, 3), case="targets that do not sum to 1")
sample("cross_entropy", (0, 3), given([], int), reduction="sum", case="no rows")
for op in ["dropout", "drop_path"]:
    for shape in [(), (6,), (4, 3), (0, 2)]:
        for p in [0.0, 0.4]:
            if (p and shape) or op == "dropout":
                sample(
                    op, shape, f=lambda F, x, op=op, p=p: getattr(F, op)(x, p, np.random.default_rng(3)), case=f"p={p}"
                )

# Of the sizes that a ViT has: along random projections
for op in ["exp", "gelu", "relu", "softmax", "log_softmax", "tanh"]:
    sample(op, nonzero(2, 3, 17, 17))
for op in ["sum", "mean", "var", "logsumexp"]:
    sample(op, (4, 17, 48), axis=-1)
sample("add", (4, 17, 48), (17, 48))
sample("multiply", (4, 17, 48), (48,))
sample("matmul", (2, 3, 17, 16), (2, 3, 16, 17))
sample("einsum", (2, 3, 17, 8), (2, 3, 17, 8), f=lambda F, q, k: F.einsum("bhnd,bhmd->bhnm", q, k), case="scores")
sample("linear", (4, 17, 48), (96, 48), (96,))
sample("layer_norm", (4, 17, 48), (48,), (48,))
sample("add_layer_norm", (4, 17, 48), (4, 17, 48), (48,), (48,))
sample("scaled_dot_product_attention", (2, 3, 17, 16), (2, 3, 17, 16), (2, 3, 17, 16))
sample("multi_head_attention", (2, 17, 144), num_heads=3)
sample("cross_entropy", (16, 100), given(np.arange(0, 96, 6), int), label_smoothing=0.1, reduction="none")
sample("transpose", (2, 17, 3, 16), axes=(0, 2, 1, 3))
sample("concatenate", (4, 1, 48), (4, 16, 48), f=lambda F, a, b: F.concatenate([a, b], axis=1), case="a class token")
sample("getitem", (4, 17, 48), f=lambda F, x: F.getitem(x, (slice(None), 0)), case="the class token")

# On a kink, where no slope exists and a rule has to choose: the choice lies between the slopes on both sides
AT_ZERO = given([0.0, 1.0, -1.0])
sample("relu", AT_ZERO, case="at 0", choice=[(0, 1, 0)])
sample("abs", AT_ZERO, case="at 0", choice=[(0, 1, -1)])
sample("sign", AT_ZERO, case="at 0", choice=[(0, 0, 0)])
TIES = given([1.0, 2.0, 0.0]), given([1.0, 3.0, 0.0])
sample("maximum", *TIES, case="equal arguments", choice=[(0.5, 0, 0.5), (0.5, 1, 0.5)])
sample("minimum", *TIES, case="equal arguments", choice=[(0.5, 1, 0.5), (0.5, 0, 0.5)])
EQUALS = given([[2.0, 2.0], [2.0, -1.0], [-1.0, -1.0]])
sample("max", EQUALS, axis=0, case="two equal", choice=[((0.5, 1), (0.5, 0), (0, 0))])
sample("min", EQUALS, axis=0, case="two equal", choice=[((0, 0), (0, 0.5), (1, 0.5))])
BOUNDS = given([-1.0, 0.0, 2.0, 3.0])
sample("clip", BOUNDS, f=lambda F, x: F.clip(x, -1, 2), case="at its bounds", choice=[(1, 1, 1, 0)])
sample("power", given(0.0), f=lambda F, x: F.power(F.abs(x), 1.0), case="|0|", choice=[0])

# What steps, compares or counts: its results are no floating-point numbers, and carry no gradient
STEPS = [
    *(Sample(op, "(2,3)", functools.partial(_call, op, {}), (normal(2, 3),)) for op in ["argmax", "isfinite"]),
    *(
        Sample(op, "(2,3) (3,)", functools.partial(_call, op, {}), (normal(2, 3), normal(3)))
        for op in ["equal", "greater", "greater_equal", "less", "less_equal", "not_equal"]
    ),
    Sample("invert", "(2,3)", lambda F, x: F.invert(F.greater(x, 0)), (normal(2, 3),)),
    Sample("bitwise_and", "(2,3)", lambda F, x: F.bitwise_and(F.greater(x, 0), F.less(x, 1)), (normal(2, 3),)),
    Sample("bitwise_or", "(2,3)", lambda F, x: F.bitwise_or(F.less(x, 0), F.greater(x, 1)), (normal(2, 3),)),
]
NOT_DIFFERENTIABLE = {step.op for step in STEPS}

# Every op has samples that are empty and that are a single number (0-d), but for
AXES = "needs an axis"
WITHOUT = {
    ("add_layer_norm", "0-d"): AXES,
    ("concatenate", "0-d"): "joins along an axis",
    ("cross_entropy", "0-d"): "needs an axis of classes",
    ("drop_path", "0-d"): "drops along the first axis",
    ("layer_norm", "0-d"): AXES,
    ("linear", "0-d"): AXES,
    ("log_softmax", "0-d"): AXES,
    ("matmul", "0-d"): "refuses numbers, as NumPy does",
    ("multi_head_attention", "0-d"): "needs three axes",
    ("scaled_dot_product_attention", "0-d"): "needs two axes",
    ("softmax", "0-d"): AXES,
    ("split", "0-d"): "cuts along an axis",
    ("swapaxes", "0-d"): AXES,
}
