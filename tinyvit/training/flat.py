"""Many arrays side by side in one: an optimizer passes over memory once, and what is averaged is one buffer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from tinyvit.engine import Tensor
from tinyvit.engine.backend import Namespace, namespace_of

TILE = 1 << 15  # numbers that a pass of several ufuncs works on at a time on a CPU, so that they stay in the cache
STRETCH = 1 << 19  # numbers that a worker takes at a time
WORTH_THREADS = 3 * STRETCH  # numbers; for fewer, nobody is woken


class Flat:
    """One array, `whole`, and `parts`: a view of each array that it holds, in that one's shape; `spans` says where.

    >>> import numpy as np
    >>> from tinyvit.engine.backend import NUMPY
    >>> flat = Flat(NUMPY, [(2, 2), (3,)], np.float32)
    >>> flat.parts[0][...] = 1
    >>> flat.whole
    array([1., 1., 1., 1., 0., 0., 0.], dtype=float32)
    """

    def __init__(self, xp: Namespace, shapes: Sequence[tuple[int, ...]], dtype: Any):
        ends = [0, *itertools.accumulate(math.prod(shape) for shape in shapes)]
        self.whole = xp.zeros(ends[-1], dtype)
        self.spans = [slice(start, stop) for start, stop in itertools.pairwise(ends)]
        self.parts = [self.whole[span].reshape(shape) for span, shape in zip(self.spans, shapes, strict=True)]


class Layout:
    """Where each of some parameters lies in flat buffers: one buffer a device and dtype, those with decay first.

    The order depends on the parameters alone, so that an optimizer's buffers and an average's lie alike.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        keys = [(type(p.data).__module__, str(p.dtype), not decays(p)) for p in parameters]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.groups = [list(group) for _, group in itertools.groupby(order, key=lambda i: keys[i][:2])]
        self.parameters = parameters

    def flats(self, dtype_of: Any = lambda p: p.dtype) -> list[Flat]:
        """Return buffers of zeros in this layout, one a group, in the parameters' dtypes or others."""
        made = []
        for group in self.groups:
            like = [self.parameters[i] for i in group]
            made.append(Flat(namespace_of(like[0].data), [p.shape for p in like], dtype_of(like[0])))
        return made

    def in_order(self, flats: Sequence[Flat]) -> list[Any]:
        """Return the views of the buffers, in the order of the parameters."""
        views: list[Any] = [None] * len(self.parameters)
        for group, flat in zip(self.groups, flats, strict=True):
            for i, part in zip(group, flat.parts, strict=True):
                views[i] = part
        return views


def decays(p: Tensor) -> bool:
    """Whether weight decay applies to a parameter: as it says itself, or else to arrays of two or more axes."""
    return bool(getattr(p, "decay", p.ndim > 1))


def merged(arrays: Sequence[Any]) -> list[Any]:
    """Return the same numbers as fewer arrays of one axis: neighbours in one flat buffer, in this order, become one.

    They are views, unless an array is not C-contiguous.

    >>> import numpy as np
    >>> whole = np.arange(6)
    >>> merged([whole[:2], whole[2:4].reshape(2, 1), whole[5:], np.zeros(1)])
    [array([0, 1, 2, 3]), array([5]), array([0.])]
    """
    runs: list[tuple[Any, int, int]] = []  # (flat buffer, start, stop)
    for array in arrays:
        whole = array.base
        if getattr(whole, "ndim", 0) != 1 or whole.dtype != array.dtype or not array.flags.c_contiguous:
            whole = array.reshape(-1)
        start = (address(array) - address(whole)) // whole.itemsize if whole is array.base else 0
        stop = start + array.size
        if runs and runs[-1][0] is whole and runs[-1][2] == start:
            start = runs.pop()[1]
        runs.append((whole, start, stop))
    return [whole[start:stop] for whole, start, stop in runs]


def address(array: Any) -> int:
    """Where an array's first number lies in memory."""
    on_gpu = hasattr(array, "device") and not hasattr(array, "__array_interface__")
    return int(array.data.ptr if on_gpu else array.__array_interface__["data"][0])


def tiles(xp: Namespace, size: int, length: int = TILE) -> Iterator[slice]:
    """Cut so many numbers into what is worked on at a time: tiles on a CPU, all at once on a GPU."""
    length = length if xp.device == "cpu" else max(size, 1)
    return (slice(start, min(start + length, size)) for start in range(0, size, length))


def stretches(*arrays: Any) -> list[tuple[Any, ...]]:
    """Cut arrays of one axis and length alike, into what a worker takes at a time: a part of each."""
    xp = namespace_of(*arrays)
    return [tuple(array[part] for array in arrays) for part in tiles(xp, arrays[0].size, STRETCH)]


def crew(work: Sequence[Any]) -> int | None:
    """Return how many workers such a list of arrays is for: one where there is little to do or on a GPU, else all."""
    on_cpu = not work or namespace_of(*work[:1]).device == "cpu"
    return None if on_cpu and sum(array.size for array in work) > WORTH_THREADS else 1
