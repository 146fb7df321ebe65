"""Every op that PyTorch has too, against PyTorch, on what hypothesis draws: shapes, dtypes, axes, layouts in memory.

Compared are values, gradients along a random cotangent v, and the gradients of ⟨gradients, u⟩ for a random u, with
respect to the inputs and to v. Hypothesis draws what an op's behaviour depends on; the numbers come from a generator
whose seed it draws, away from poles, and away from kinks unless both libraries choose the same slope there.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinyvit as tv

torch = pytest.importorskip("torch")

from torch_peer import compare_twice

WITHOUT_PEER = {
    "to_device": "the devices are others: tests/test_backend.py",
    "dropout": "the random numbers are others: tests/test_ops.py compares with NumPy, given the same ones",
    "drop_path": "PyTorch has none; tests/test_ops.py as for dropout",
}
LAYOUTS = "contiguous", "Fortran", "every second", "backwards", "repeated"
VALUES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.uniform(0.5, 2, shape),
    "nonzero": lambda rng, shape: rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape),
    "ties": lambda rng, shape: rng.integers(-1, 2, shape),  # for kinks where both choose the same slope
    "steps": lambda rng, shape: rng.permuted(np.indices(shape)[-1] - 0.3, axis=-1),  # rows whose numbers lie apart
    "special": lambda rng, shape: rng.choice([0, 1, np.inf, -np.inf, np.nan], shape),
}


class Draw:
    """What an example is made of."""

    def __init__(self, data):
        self.draw = data.draw
        self.rng = np.random.default_rng(self.draw(st.integers(0, 2**32 - 1)))
        self.dtype = self.one_of(np.float64, np.float32)

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def number(self, low, high):
        return self.draw(st.integers(low, high))

    def maybe(self):
        return self.draw(st.booleans())

    def some(self, *choices, least=0, most=None):
        """Some of the choices, none twice, in any order."""
        if not choices:
            return []
        return self.draw(st.lists(st.sampled_from(choices), min_size=least, max_size=most, unique=True))

    def side(self, least=0):
        """A size, 0 less often: what is empty compares little."""
        return self.one_of(*[n for n in (2, 3, 1, 2, 3, 0) if n >= least])

    def shape(self, least=0, dims=(0, 3)):
        return tuple(self.side(least) for _ in range(self.number(*dims)))

    def shapes(self, count, dims=3, signature=None):
        """Shapes that broadcast together."""
        how_many = {"signature": signature} if signature else {"num_shapes": count}
        ranges = {"min_side": self.one_of(2, 1, 0), "max_side": 3, "min_dims": self.number(0, 1), "max_dims": dims}
        return self.draw(hnp.mutually_broadcastable_shapes(**how_many, **ranges)).input_shapes

    def axis(self, ndim):
        return self.number(-ndim, ndim - 1)

    def from_either_end(self, axes, ndim):
        return tuple(a - ndim * self.maybe() for a in axes)

    def axes(self, ndim, least=0):
        """None, an axis, or several."""
        chosen = self.from_either_end(self.some(*range(ndim), least=least), ndim)
        return self.one_of(None, chosen, *chosen[:1])

    def array(self, shape, values="normal", dtype=None):
        """Numbers of a kind (see VALUES), in some layout."""
        return self.laid_out(VALUES[values](self.rng, shape).astype(dtype or self.dtype))

    def arrays(self, shapes, *values):
        """Arrays of mixed dtypes, except where 0-d ones meet others: they count for the dtype in NumPy alone."""
        alike = any(shapes) and not all(shapes)
        dtypes = [self.dtype if alike else self.one_of(np.float64, np.float32) for _ in shapes]
        return [self.array(*facts) for facts in zip(shapes, itertools.cycle(values), dtypes, strict=False)]

    def integers(self, shape, low, high, dtype=np.int64):
        """Whole numbers low … high − 1."""
        return self.laid_out(self.rng.integers(low, high, shape, dtype))

    def mask(self, shape):
        return self.laid_out(self.rng.random(shape) < 0.5)

    def laid_out(self, a):
        """An array of this shape in some layout; `repeated` has stride 0, and its first element all along an axis."""
        a = np.asarray(a)
        layout = self.one_of(*LAYOUTS) if a.ndim else "contiguous"
        if layout == "Fortran":
            a = np.asfortranarray(a)
        elif layout == "every second":
            a = np.repeat(a, 2, axis=-1)[..., ::2]
        elif layout == "backwards":
            a = np.flip(np.flip(a).copy())
        elif layout == "repeated" and a.size:
            a = np.broadcast_to(a.take([0], self.axis(a.ndim)), a.shape)
        a.flags.writeable = False
        return a


CASES = {}


def case(*ops):
    """Put a function (op, draw) -> (f, arrays) into the table for these ops; compared is f(F, *arrays)."""
    return lambda function: CASES.update(dict.fromkeys(ops, function))


def call(op, *arguments, **keywords):
    """F.op(*arrays, *arguments, **keywords)."""
    return lambda F, *arrays: getattr(F, op)(*arrays, *arguments, **keywords)


# ------------------------------------------------------------------------------------------------------- elementwise

smooth = "negative", "square", "exp", "sin", "cos", "tanh", "erf", "sigmoid", "zeros_like"
case(*smooth)(lambda op, d: (call(op), [d.array(d.shape())]))
case("gelu")(lambda op, d: (call(op, d.one_of("none", "tanh", "quick")), [d.array(d.shape())]))
case("log", "log1p", "sqrt")(lambda op, d: (call(op), [d.array(d.shape(), "positive")]))
case("abs", "sign", "relu")(lambda op, d: (call(op), [d.array(d.shape(), d.one_of("normal", "ties"))]))  # slope 0 at 0
case("astype")(lambda op, d: (call(op, d.one_of("float32", "float64", "int64", "bool")), [d.array(d.shape())]))
case("isfinite")(lambda op, d: (call(op), [d.array(d.shape(), "special")]))


@case("clip")
def _(op, d):
    """At a bound both pass the gradient on. Arrays of bounds are integers, because they carry no gradient."""
    if d.maybe():
        return call(op, d.one_of(None, -1, 0.5), d.one_of(None, 0, 1)), [d.array(d.shape(), "ties")]
    x, low, high = d.shapes(3)
    return call(op), [d.array(x, "ties"), d.integers(low, -2, 1, np.int8), d.integers(high, -1, 2, np.int8)]


@case("add", "subtract", "multiply", "divide")
def _(op, d):
    number = d.one_of(None, -2, 1.5)
    if number is None:
        return call(op), d.arrays(d.shapes(2), "normal", "nonzero")
    on_the_left = lambda F, x: getattr(F, op)(number, x)
    return d.one_of(on_the_left, call(op, number)), [d.array(d.shape(), "nonzero")]


@case("power")
def _(op, d):
    """Any exponent for positive bases; for negative ones, constant whole exponents."""
    form = d.one_of("two arrays", "whole array", "whole number", "number", "base")
    if form == "two arrays":
        return call(op), d.arrays(d.shapes(2), "positive", "normal")
    if form == "whole array":
        base, exponent = d.shapes(2)
        return call(op), [d.array(base, "nonzero"), d.integers(exponent, -2, 4, np.int8)]
    if form == "whole number":
        return call(op, d.one_of(-2, -1, 0, 1, 2, 3, 2.0)), [d.array(d.shape(), "nonzero")]
    if form == "number":
        return call(op, d.one_of(-1.5, 0.5)), [d.array(d.shape(), "positive")]
    return lambda F, x: F.power(2.5, x), [d.array(d.shape())]


@case("maximum", "minimum", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
def _(op, d):
    """Equal arguments of maximum and minimum get half the gradient each in both."""
    if d.maybe():
        return call(op, d.one_of(0, 1.0)), [d.array(d.shape(), "ties")]
    return call(op), d.arrays(d.shapes(2), d.one_of("normal", "ties"))


@case("where")
def _(op, d):
    condition, *shapes = d.shapes(3)
    if d.maybe():
        return call(op, 0.5), [d.mask(condition), d.array(shapes[0])]
    return call(op), [d.mask(condition), *d.arrays(shapes, "normal")]


@case("bitwise_and", "bitwise_or", "invert")
def _(op, d):
    """Bools, and integers bit by bit."""
    kind = d.one_of(bool, np.int8, np.int64)
    shapes = d.shapes(1 if op == "invert" else 2)
    return call(op), [d.mask(s) if kind is bool else d.integers(s, -9, 9, kind) for s in shapes]


# -------------------------------------------------------------------------------------------------------- reductions


def reducible(d, axis, ndim, least=0):
    """A shape whose reduced axes are not empty, for nothing has no largest element and no mean."""
    axes = range(ndim) if axis is None else [a % ndim for a in (axis if isinstance(axis, tuple) else (axis,))]
    return tuple(d.side(1 if a in axes else least) for a in range(ndim))


@case("sum", "mean", "max", "min", "logsumexp")
def _(op, d):
    """Equal extrema share the gradient in both."""
    ndim = d.number(0, 3)
    axis = d.axes(ndim)
    shape = d.shape(dims=(ndim, ndim)) if op == "sum" else reducible(d, axis, ndim)
    values = d.one_of("normal", "ties") if op in ("max", "min") else "normal"
    return call(op, axis=axis, keepdims=d.maybe()), [d.array(shape, values)]


@case("var")
def _(op, d):
    """PyTorch warns of an empty result, and both where n ≤ ddof."""
    ndim = d.number(1, 3)
    axis = d.axes(ndim, least=1)
    shape = reducible(d, axis, ndim, least=1)
    count = math.prod(shape) // np.zeros(shape).sum(axis).size
    return call(op, axis=axis, ddof=d.number(0, min(2, count - 1)), keepdims=d.maybe()), [d.array(shape)]


@case("argmax", "softmax", "log_softmax")
def _(op, d):
    """Argmax gives the first of equals in both."""
    ndim = d.number(1, 3)
    axis = d.one_of(d.axis(ndim), *[None] * (op == "argmax"))
    return call(op, axis=axis), [d.array(reducible(d, axis, ndim), "ties" if op == "argmax" else "normal")]


# ------------------------------------------------------------------------------------------------------------ shapes


@case("reshape")
def _(op, d):
    """Sizes in another order, with one more of size 1, with two multiplied, with one left open."""
    shape = d.shape()
    target = d.draw(st.permutations(shape + (1,) * d.number(0, 1)))
    if target and d.maybe():
        target = [math.prod(target[:2]), *target[2:]]
    if target and 0 not in shape and d.maybe():
        target[d.axis(len(target))] = -1
    return call(op, d.one_of(tuple(target), *target * (len(target) == 1))), [d.array(shape)]


@case("transpose", "swapaxes", "flip")
def _(op, d):
    shape = d.shape(dims=(1 if op == "swapaxes" else 0, 4))
    ndim = len(shape)
    if op == "swapaxes":
        return call(op, d.axis(ndim), d.axis(ndim)), [d.array(shape)]
    order = d.from_either_end(d.draw(st.permutations(range(ndim))), ndim)
    return call(op, d.axes(ndim) if op == "flip" else d.one_of(None, order)), [d.array(shape)]


@case("expand_dims")
def _(op, d):
    shape, new = d.shape(), d.number(1, 2)
    ndim = len(shape) + new
    axes = d.from_either_end(d.some(*range(ndim), least=new, most=new), ndim)
    return call(op, d.one_of(axes, *axes * (new == 1))), [d.array(shape)]


@case("squeeze")
def _(op, d):
    shape = tuple(d.one_of(1, 2, 1, 3, 0) for _ in range(d.number(0, 4)))
    chosen = d.from_either_end(d.some(*[a for a, n in enumerate(shape) if n == 1]), len(shape))
    return call(op, d.one_of(None, chosen, *chosen[:1])), [d.array(shape)]


@case("broadcast_to")
def _(op, d):
    shape = d.shape()
    target = d.shape(dims=(0, 1)) + tuple(d.side() if n == 1 else n for n in shape)
    return call(op, target), [d.array(shape)]


@case("pad")
def _(op, d):
    shape = d.shape(dims=(0, 3))
    forms = [(), (2,), *([(len(shape), 2)] if shape else [])]
    width = d.draw(hnp.arrays(int, d.one_of(*forms), elements=st.integers(0, 2))).tolist() if shape else 0
    return call(op, width, constant_values=d.one_of(0, 1.5)), [d.array(shape)]


@case("concatenate", "stack")
def _(op, d):
    """Of mixed dtypes; concatenate's parts differ in size along the axis."""
    new = op == "stack"
    shape = d.shape(dims=(1 - new, 3))
    axis = d.axis(len(shape) + new)
    sizes = [[n if new or i != axis % len(shape) else d.side() for i, n in enumerate(shape)] for _ in range(3)]
    along = axis if new else d.one_of(axis, None)
    parts = d.arrays(list(map(tuple, sizes[: d.number(1, 3)])), "normal")
    return lambda F, *parts: getattr(F, op)(parts, along), parts


@case("split")
def _(op, d):
    """Into equal sections, or at indices in order, counted from either end; some of the parts are used."""
    shape, sections = list(d.shape(dims=(1, 3))), d.number(1, 3)
    axis = d.axis(len(shape))
    if d.maybe():
        shape[axis] *= sections
        where = sections
    else:
        cuts = sorted(d.number(0, 4) for _ in range(sections - 1))
        where = [i - shape[axis] if i < shape[axis] and d.maybe() else i for i in cuts]
    used = d.some(*range(sections), least=1)
    return lambda F, x: [F.split(x, where, axis)[i] for i in used], [d.array(tuple(shape))]


# ---------------------------------------------------------------------------------------------------------- indexing


def index(d, shape):
    """An index into this shape: basic, with a mask of neighbouring axes, or with integer arrays that may repeat."""
    kind = d.one_of("integers", "basic", "mask", "integers", "integers")
    if kind == "basic":
        return d.draw(hnp.basic_indices(shape, allow_newaxis=True))
    if kind == "mask":
        first, last = sorted([d.number(0, len(shape)), d.number(0, len(shape))])
        return (*(d.draw(st.slices(n)) for n in shape[:first]), d.mask(shape[first:last]))
    common = d.one_of((3,), (4,), (2, 2), (2, 1), (0,), ())
    arrays = d.some(*[axis for axis, n in enumerate(shape) if n], least=1)
    others = [d.one_of("slice", "number") if n else "slice" for n in shape]
    make = {"slice": lambda n: d.draw(st.slices(n)), "number": d.axis}
    parts = [d.integers(common, -n, n) if a in arrays else make[others[a]](n) for a, n in enumerate(shape)]
    return tuple(parts if d.maybe() else [*parts[:1], None, *parts[1:]])


@case("getitem")
def _(op, d):
    shape = d.shape(least=d.one_of(1, 0))
    return call(op, index(d, shape)), [d.array(shape)]


@case("scatter_add")
def _(op, d):
    """The values may broadcast to what the index reads."""
    shape = d.shape(least=d.one_of(1, 0))
    where = index(d, shape)
    read = np.empty(shape)[where].shape
    smaller = tuple(1 if d.maybe() else n for n in read)[d.number(0, len(read)) :]
    return call(op, where, shape), [d.array(d.one_of(read, smaller))]


@case("take")
def _(op, d):
    shape = d.shape(dims=(1, 3))
    axis = d.one_of(None, d.axis(len(shape)))
    n = math.prod(shape) if axis is None else shape[axis]
    return call(op, axis=axis), [d.array(shape), d.integers(d.shape(dims=(0, 2)) if n else 0, -n, max(n, 1))]


# ------------------------------------------------------------------------------------------- products, neural networks


@case("matmul")
def _(op, d):
    """Matrices and vectors, batches that broadcast, empty ones."""
    return call(op), list(map(d.array, d.shapes(2, dims=2, signature="(n?,k),(k,m?)->(n?,m?)")))


@case("einsum")
def _(op, d):
    """Up to three operands, letters in any order; where a letter recurs, a size of 1 broadcasts."""
    sizes = {letter: d.side() for letter in "abcd"}
    terms = ["".join(d.some(*"abcd", most=3)) for _ in range(d.number(1, 3))]
    result = "".join(d.some(*sorted(set("".join(terms)))))
    shapes = [tuple(d.one_of(*[sizes[i]] * 5, 1) for i in term) for term in terms]
    subscripts = f"{d.one_of(',', ' , ').join(terms)}->{result}"
    return lambda F, *xs: F.einsum(subscripts, *xs), list(map(d.array, shapes))


@case("linear")
def _(op, d):
    *rows, k = d.shape(dims=(1, 4))
    m = d.side()
    return call(op), list(map(d.array, [(*rows, k), (m, k), (m,)][: d.number(2, 3)]))


@case("layer_norm")
def _(op, d):
    """A larger eps where a row is constant, for there the second derivatives grow like 1/eps."""
    shape = *d.shape(dims=(0, 3)), d.number(1, 4)
    x = d.array(shape, "steps")
    eps = 0.5 if (np.ptp(x, axis=-1) == 0).any() else d.one_of(1e-6, 0.5)
    return call(op, eps=eps), [x, d.array(shape[-1:]), d.array(shape[-1:])]


@case("add_layer_norm")
def _(op, d):
    """Steps twice are steps: see layer_norm."""
    shape = *d.shape(dims=(0, 3)), d.number(1, 4)
    x, branch = d.array(shape, "steps"), d.array(shape, "steps")
    eps = 0.5 if (np.ptp(x + branch, axis=-1) < 1).any() else d.one_of(1e-6, 0.5)  # they may cancel all but roundings
    return call(op, eps=eps), [x, branch, d.array(shape[-1:]), d.array(shape[-1:])]


@case("scaled_dot_product_attention")
def _(op, d):
    """Batches broadcast; there is at least one key, of at least one number."""
    (n, v), (m, k) = d.shape(dims=(2, 2)), d.shape(least=1, dims=(2, 2))
    shapes = [batch + own for batch, own in zip(d.shapes(3, dims=2), [(n, k), (m, k), (m, v)], strict=True)]
    return call(op, scale=d.one_of(None, 0.7)), list(map(d.array, shapes))


@case("multi_head_attention")
def _(op, d):
    """There is at least one token, of at least one number a head."""
    heads = d.number(1, 3)
    return call(op, num_heads=heads), [d.array((d.side(), d.side(least=1), 3 * heads * d.side(least=1)))]


@case("cross_entropy")
def _(op, d):
    """Class numbers, or distributions, which need not sum to 1; no rows have no mean."""
    rows, classes = d.shape(dims=(0, 2)), d.number(1, 4)
    targets = d.integers(rows, 0, classes) if d.maybe() else d.array((*rows, classes), "positive")
    reduction = d.one_of("sum", "none", *["mean"] * (0 not in rows))
    settings = {"label_smoothing": d.one_of(0.0, 0.1, 1.0), "reduction": reduction}
    return call(op, **settings), [d.array((*rows, classes)), targets]


# ------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost more than they bring on arrays this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("op", sorted(CASES))
@settings(max_examples=25)
@given(st.data())
def test_values_and_two_derivatives_are_pytorchs(op, data):
    d = Draw(data)
    f, arrays = CASES[op](op, d)
    note(" ".join(f"{a.dtype}{a.shape} with strides {a.strides}" for a in arrays))
    compare_twice(f, arrays, lambda shape, dtype: d.array(shape, "normal", dtype))


def test_every_op_is_compared_or_has_a_reason_not_to_be():
    assert CASES.keys() | WITHOUT_PEER.keys() == set(tv.ops.__all__)
    assert not CASES.keys() & WITHOUT_PEER.keys()
