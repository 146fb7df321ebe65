"""Shape ops: the same numbers, arranged otherwise. Each rule arranges the gradient back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyvit.engine.primitive import primitive


@primitive
def reshape(xp, x, shape):
    """The elements in order, in another shape; one size may be −1."""
    return xp.reshape(x, shape)


reshape.gradients(x=lambda F, gy, x_shape: F.reshape(gy, x_shape))


@primitive
def transpose(xp, x, axes=None):
    """Axes in another order; reversed if None."""
    return xp.transpose(x, axes)


def _transpose_rule(F, gy, axes):
    """Each axis goes back to where it came from."""
    if axes is None:
        return F.transpose(gy)
    axes = [axis % len(axes) for axis in axes]
    return F.transpose(gy, tuple(sorted(range(len(axes)), key=axes.__getitem__)))


transpose.gradients(x=_transpose_rule)


@primitive
def swapaxes(xp, x, axis1, axis2):
    """Two axes exchanged."""
    return xp.swapaxes(x, axis1, axis2)


swapaxes.gradients(x=lambda F, gy, axis1, axis2: F.swapaxes(gy, axis1, axis2))


@primitive
def expand_dims(xp, x, axis):
    """New axes of size 1 at these positions of the result."""
    return xp.expand_dims(x, axis)


expand_dims.gradients(x=lambda F, gy, x_shape: F.reshape(gy, x_shape))


@primitive
def squeeze(xp, x, axis=None):
    """Without the axes of size 1, or without those named."""
    return xp.squeeze(x, axis)


squeeze.gradients(x=lambda F, gy, x_shape: F.reshape(gy, x_shape))


@primitive
def broadcast_to(xp, x, shape):
    """Repeated along new axes and axes of size 1, without a copy."""
    return xp.broadcast_to(x, shape)


broadcast_to.gradients(x=lambda F, gy: gy)  # the engine sums over what was broadcast, here as everywhere


@primitive
def flip(xp, x, axis=None):
    """Elements in reverse order along an axis, several or all."""
    return xp.flip(x, axis)


flip.gradients(x=lambda F, gy, axis: F.flip(gy, axis))


@primitive
def pad(xp, x, pad_width, constant_values=0):
    """A constant border: pad_width is n, (before, after), or such a pair for each axis, as in NumPy."""
    pairs = _pairs(pad_width, x.ndim) or 0  # a single number has no border, and NumPy no empty list of pairs
    return xp.pad(x, pairs, constant_values=constant_values)


def _pad_rule(F, gy, x_shape, pad_width):
    """Cut the border off again."""
    return gy[
        tuple(
            slice(before, before + n) for (before, _), n in zip(_pairs(pad_width, len(x_shape)), x_shape, strict=True)
        )
    ]


def _pairs(pad_width: Any, ndim: int) -> list[list[int]]:
    """NumPy's short forms of pad_width, written out: (before, after) for each axis."""
    return np.broadcast_to(np.asarray(pad_width), (ndim, 2)).tolist()


pad.gradients(x=_pad_rule)


@primitive
def _concatenate(xp, *arrays, axis=0):
    # NumPy takes over the order of what it is given, a repeated token's too; kernels take rows that lie in order
    return xp.ascontiguousarray(xp.concatenate(arrays, axis=axis))


@_concatenate.gradient
def _concatenate_rule(F, gy, shapes, axis):
    """Each input gets its stretch of the gradient."""
    ends = list(itertools.accumulate(shape[axis] for shape in shapes))
    return F.split(gy, ends[:-1], axis=axis)


def concatenate(arrays: Sequence[Any], axis: int | None = 0) -> Any:
    """The arrays behind one another along an axis that they have; flattened first if None."""
    if axis is None:
        return _concatenate(*(reshape(x, (-1,)) for x in arrays), axis=0)
    return _concatenate(*arrays, axis=axis)


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """The arrays behind one another along a new axis."""
    return concatenate([expand_dims(x, axis) for x in arrays], axis)


@primitive
def split(xp, x, indices_or_sections, axis=0):
    """A tuple of parts along an axis: so many equal ones, or cut at these indices."""
    return xp.split(x, indices_or_sections, axis)


split.gradients(x=lambda F, gy, axis: F.concatenate(gy, axis=axis))
