"""Reductions: many numbers to one, along an axis, several, or all (axis=None), as in NumPy.

Where several elements are the maximum or the minimum, they share the gradient equally.
"""

from __future__ import annotations

import math

from tinyvit.engine.primitive import primitive


def _spread(F, reduced, x_shape, axis, keepdims):
    """A reduced array, put back over the axes that the reduction took away: it broadcasts against x again."""
    if keepdims:
        return reduced
    if axis is None:
        return F.reshape(reduced, (1,) * len(x_shape))
    return F.expand_dims(reduced, axis)


def _reduced_count(x_shape, axis):
    """How many elements each result was made from."""
    axes = range(len(x_shape)) if axis is None else (axis if isinstance(axis, tuple) else (axis,))
    return math.prod(x_shape[i] for i in axes)


@primitive
def sum(xp, x, axis=None, keepdims=False):
    """Σ x along an axis."""
    return xp.sum(x, axis=axis, keepdims=keepdims)


sum.gradients(
    x=lambda F, gy, x_shape, axis, keepdims: F.broadcast_to(_spread(F, gy, x_shape, axis, keepdims), x_shape),
)


@primitive
def mean(xp, x, axis=None, keepdims=False):
    """Σ x / n along an axis."""
    return xp.mean(x, axis=axis, keepdims=keepdims)


mean.gradients(
    x=lambda F, gy, x_shape, axis, keepdims: F.broadcast_to(
        _spread(F, gy / _reduced_count(x_shape, axis), x_shape, axis, keepdims), x_shape
    ),
)


@primitive
def var(xp, x, axis=None, ddof=0, keepdims=False):
    """Σ (x − mean)² / (n − ddof) along an axis."""
    return xp.var(x, axis=axis, ddof=ddof, keepdims=keepdims)


var.gradients(
    x=lambda F, gy, x, x_shape, axis, ddof, keepdims: (
        _spread(F, gy, x_shape, axis, keepdims)
        * 2
        / (_reduced_count(x_shape, axis) - ddof)
        * (x - F.mean(x, axis=axis, keepdims=True))
    ),
)


def _extremum_rule(F, gy, y, x, x_shape, axis, keepdims):
    """∂max/∂x is 1 at the maximum, 1/k at each of k equal maxima, 0 elsewhere."""
    chosen = (x == _spread(F, y, x_shape, axis, keepdims)).astype(gy.dtype)
    ties = F.maximum(F.sum(chosen, axis=axis, keepdims=True), 1)  # none at all where the maximum is NaN
    return _spread(F, gy, x_shape, axis, keepdims) * (chosen / ties)


@primitive
def max(xp, x, axis=None, keepdims=False):
    """Largest element along an axis; equal ones share the gradient."""
    return xp.max(x, axis=axis, keepdims=keepdims)


max.gradients(x=_extremum_rule)


@primitive
def min(xp, x, axis=None, keepdims=False):
    """Smallest element along an axis; equal ones share the gradient."""
    return xp.min(x, axis=axis, keepdims=keepdims)


min.gradients(x=_extremum_rule)


@primitive
def logsumexp(xp, x, axis=None, keepdims=False):
    """Log Σ exp x along an axis, without overflow: the maximum is taken out before the exponential."""
    top = xp.max(x, axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.sum(xp.exp(x - top), axis=axis, keepdims=True)
    # log 0 = −∞ is the right answer where every x is −∞, and NumPy would warn of it
    y = top + xp.where(total > 0, xp.log(xp.where(total > 0, total, xp.ones_like(total))), -xp.inf)
    return y if keepdims else xp.squeeze(y, axis=axis)


def _logsumexp_rule(F, gy, y, x, x_shape, axis, keepdims):
    """∂/∂x log Σ exp x = softmax(x) = exp(x − y)."""
    y = F.where(y == -math.inf, 0, y)  # a sum of nothing but zeros; +∞ has no gradient, and gives NaN
    return _spread(F, gy, x_shape, axis, keepdims) * F.exp(x - _spread(F, y, x_shape, axis, keepdims))


logsumexp.gradients(x=_logsumexp_rule)


@primitive
def argmax(xp, x, axis=None):
    """Where the largest element stands: integers, which carry no gradient."""
    return xp.argmax(x, axis=axis)
