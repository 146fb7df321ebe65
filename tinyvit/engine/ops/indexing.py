"""Indexing, basic and advanced. An element that is read twice gets both gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyvit.engine.backend import namespace_of
from tinyvit.engine.primitive import primitive
from tinyvit.engine.tensor import plain


@primitive
def _getitem(xp, x, index):
    return x[index]


@primitive
def _scatter_add(xp, values, index, shape):
    return xp.scatter_add(values, index, shape)


# Reading and adding at an index are each other's adjoint: each one's rule is the other.
_getitem.gradients(x=lambda F, gy, index, x_shape: F.scatter_add(gy, index, x_shape))
_scatter_add.gradients(values=lambda F, gy, index: gy[index])


def getitem(x: Any, index: Any) -> Any:
    """x[index] with slices, integers, None, ..., bool masks and integer arrays or Tensors, as in NumPy."""
    return _getitem(x, _index(x, index))


def scatter_add(values: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with `values` added at `index`; where an index occurs twice, both values count."""
    return _scatter_add(values, _index(values, index), shape)


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """Elements at integer `indices` along an axis (None: of the flattened x)."""
    if isinstance(indices, (list, tuple)):
        indices = np.asarray(indices, dtype=int)
    if axis is None:
        return getitem(x.reshape(-1), indices)
    if not -x.ndim <= axis < x.ndim:
        raise IndexError(f"take: there is no axis {axis} in a shape of {x.ndim} axes")
    return getitem(x, (slice(None),) * (axis % x.ndim) + (indices,))


def _index(x: Any, index: Any) -> tuple[Any, ...]:
    """An index as a tuple whose lists, tuples and Tensors are arrays on x's device."""
    xp = namespace_of(plain(x))

    def as_part(part: Any) -> Any:
        part = plain(part)
        if isinstance(part, (list, tuple)):
            part = np.asarray(part, dtype=None if part else int)
        return xp.array(part) if hasattr(part, "ndim") else part  # a copy: the tape keeps it

    return tuple(map(as_part, index if isinstance(index, tuple) else (index,)))
