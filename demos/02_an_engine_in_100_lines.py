"""Build a tape engine in 100 lines, on arrays of any shape, and hold it against tinyvit.

    python demos/02_an_engine_in_100_lines.py

Between the two rulers below is a whole engine. A `Value` holds an array and, for each parent, the rule that turns the
gradient gy of the loss by this value into the gradient by that parent. Every op is its formula and its rules, side by
side. The sweep needs four ideas: numbers given at creation, the sum over the uses of a value, the sum over what was
broadcast, and letting go.

tinyvit's `engine/tape.py` has the same four. What it adds: rules that can be differentiated again, gradients only for
those who need them, dtypes, a GPU, and clear errors (here, a second backward() finds nothing left and says nothing).
The comparison at the end writes one expression for both engines.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tinyvit as tv

Array = Any  # a numpy.ndarray
# ----------------------------------------------------------------------------------------------- the engine, from here
numbers = itertools.count()


class Value:
    """An array, and how its gradient goes on to the values that it was computed from."""

    __array_ufunc__ = None  # array + Value is Value.__radd__

    def __init__(self, data: Any, *pulls: tuple[Value, Callable[[Array], Array]]):
        self.data = np.asarray(data, float)
        self.pulls = pulls  # (parent, rule), none for a leaf
        self.grad: Array = 0.0
        self.number = next(numbers)  # an op can only use what exists: creation order is topological order

    def backward(self, gy: Any = 1.0) -> None:
        """Add ∂self/∂leaf to the grad of every leaf behind; gy is ∂L/∂self."""
        reached, seen = [self], {self}
        for node in reached:  # the list grows while we walk it: no recursion
            new = {parent for parent, _ in node.pulls} - seen
            reached += new
            seen |= new
        pending = {self: np.broadcast_to(np.asarray(gy, float), self.data.shape)}
        for node in sorted(reached, key=lambda node: -node.number):  # every use of a node comes before the node
            g = pending.pop(node)
            if not node.pulls:
                node.grad = node.grad + g
            for parent, rule in node.pulls:
                share = unbroadcast(rule(g), parent.data.shape)
                pending[parent] = pending[parent] + share if parent in pending else share
            node.pulls = ()  # and what the rules held is free

    def __add__(self, b: Any) -> Value:
        a, b = self, value(b)
        return Value(a.data + b.data, (a, lambda gy: gy), (b, lambda gy: gy))

    def __mul__(self, b: Any) -> Value:
        a, b = self, value(b)
        return Value(a.data * b.data, (a, lambda gy: gy * b.data), (b, lambda gy: gy * a.data))

    def __truediv__(self, b: Any) -> Value:
        a, b = self, value(b)
        y = a.data / b.data
        return Value(y, (a, lambda gy: gy / b.data), (b, lambda gy: -gy * y / b.data))

    def __matmul__(self, b: Any) -> Value:
        a, b = self, value(b)
        to_a, to_b = (lambda gy: gy @ b.data.swapaxes(-1, -2)), (lambda gy: a.data.swapaxes(-1, -2) @ gy)
        return Value(a.data @ b.data, (a, to_a), (b, to_b))

    def __sub__(self, b: Any) -> Value:
        return self + value(b) * -1.0

    def swapaxes(self, i: int, j: int) -> Value:
        return Value(self.data.swapaxes(i, j), (self, lambda gy: gy.swapaxes(i, j)))

    __radd__, __rmul__ = __add__, __mul__


def value(x: Any) -> Value:
    return x if isinstance(x, Value) else Value(x)


def unbroadcast(gy: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which a value was stretched: it was used once for each of them."""
    gy = gy.sum(axis=tuple(range(gy.ndim - len(shape))))
    return gy.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def exp(x: Value) -> Value:
    y = np.exp(x.data)
    return Value(y, (x, lambda gy: gy * y))


def log(x: Value) -> Value:
    return Value(np.log(x.data), (x, lambda gy: gy / x.data))


def relu(x: Value) -> Value:
    return Value(np.maximum(x.data, 0), (x, lambda gy: gy * (x.data > 0)))


def sum(x: Value, axis: int | None = None, keepdims: bool = False) -> Value:
    y = x.data.sum(axis=axis, keepdims=keepdims)
    shape = np.sum(x.data, axis=axis, keepdims=True).shape  # with the summed axes as ones, to be stretched again
    return Value(y, (x, lambda gy: np.broadcast_to(gy.reshape(shape), x.data.shape)))


# -------------------------------------------------------------------------------------------------------------- to here


class Tiny:
    """The ops above under the names of tv.ops, so that one expression serves both."""

    exp, log, relu, sum = staticmethod(exp), staticmethod(log), staticmethod(relu), staticmethod(sum)


def mlp(F: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
    """Cross-entropy of a two-layer network against class 0: −log softmax(W₂·relu(W₁·x + b₁) + b₂)₀."""
    z = F.relu(x @ w1 + b1) @ w2 + b2  # (5, 4) → (5, 6) → (5, 3)
    first = np.array([1.0, 0.0, 0.0])
    return F.sum(F.log(F.sum(F.exp(z), axis=1)) - F.sum(z * first, axis=1)) / 5.0


def attention(F: Any, x: Any, wq: Any, wk: Any, wv: Any) -> Any:
    """softmax(Q·Kᵀ/√d_k)·V with a residual; x is used four times. Then Σ y·y·c for fixed c."""
    q, k, v = x @ wq, x @ wk, x @ wv  # (2, 5, 4) each
    e = F.exp(q @ k.swapaxes(-1, -2) * 4**-0.5)  # (2, 5, 5)
    y = x + (e / F.sum(e, axis=-1, keepdims=True)) @ v
    return F.sum(y * y * np.cos(np.arange(40.0)).reshape(2, 5, 4))


def largest_difference(expression: Callable[..., Any], *shapes: tuple[int, ...]) -> float:
    """The worst gradient of all inputs, relative to the largest one."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    ours, theirs = [Value(a) for a in arrays], [tv.tensor(a, requires_grad=True) for a in arrays]
    expression(Tiny, *ours).backward()
    expression(tv.ops, *theirs).backward()
    pairs = [(a.grad, b.grad.numpy()) for a, b in zip(ours, theirs, strict=True) if b.grad is not None]
    assert len(pairs) == len(shapes)
    return float(max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(b).max() for _, b in pairs))


def main() -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    start, end = (i for i, line in enumerate(lines) if line.startswith("# ---"))
    print(f"the engine: {end - start - 1} lines")
    assert end - start - 1 <= 100

    for name, difference in (
        ("an MLP with its loss", largest_difference(mlp, (5, 4), (4, 6), (6,), (6, 3), (3,))),
        ("attention, in a batch", largest_difference(attention, (2, 5, 4), (4, 4), (4, 4), (4, 4))),
    ):
        print(f"{name:<22} gradients differ from tinyvit's by {difference:.0e}")
        assert difference < 1e-12

    x = Value(1.0)  # a graph as deep as it likes: no recursion
    y = x
    for _ in range(10_000):
        y = y + 0.0 * y
    y.backward()
    print(f"10,000 additions deep: ∂y/∂x = {float(x.grad)}")
    assert x.grad == 1.0


if __name__ == "__main__":
    main()
