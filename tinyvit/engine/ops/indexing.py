"""Indexing, basic and advanced. An element that is read twice gets both gradients."""

from __future__ import annotations

from typing import Any

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
    return _getitem(x, plain(index))


def scatter_add(values: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with `values` added at `index`; where an index occurs twice, both values count."""
    return _scatter_add(values, plain(index), shape)


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """Elements at integer `indices` along an axis (None: of the flattened x)."""
    if axis is None:
        return getitem(x.reshape(-1), indices)
    return getitem(x, (slice(None),) * (axis % x.ndim) + (indices,))
