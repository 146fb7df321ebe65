"""Batches on their way to a GPU: the next one is copied while this one is computed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from tinyvit.engine.backend import empty_pinned, namespace_on

Batch = Sequence[np.ndarray]


def on_device(batches: Iterable[Batch], device: str) -> Iterator[Sequence[Any]]:
    """Yield the batches' arrays on a device; on a CPU they are there already.

    On a GPU a batch lies in one of two places, and is overwritten when the one after the next is asked for. Copies go
    from pinned memory through a stream of their own, so that neither the host nor the kernels wait for them.

    >>> [batch] = on_device([(np.zeros(2), np.ones(2))], "cpu")
    >>> batch
    (array([0., 0.]), array([1., 1.]))
    """
    return iter(batches) if device == "cpu" else _copied(batches)


def _copied(batches: Iterable[Batch]) -> Iterator[Sequence[Any]]:
    cupy = namespace_on("gpu").module
    stream = cupy.cuda.Stream(non_blocking=True)
    places = [_Place(cupy), _Place(cupy)]
    ahead = None
    for i, batch in enumerate(batches):
        coming = places[i % 2]
        coming.fetch(batch, stream)
        if ahead is not None:
            yield ahead.arrays()
            ahead.used()
        ahead = coming
    if ahead is not None:
        yield ahead.arrays()


class _Place:
    """Pinned memory and memory of the GPU for one batch, and who has to be waited for before they are written to."""

    def __init__(self, cupy: Any):
        self.cupy = cupy
        self.pinned: list[Any] = []
        self.room: list[Any] = []
        self.there: list[Any] = []
        self.copied, self.free = cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True)

    def fetch(self, batch: Batch, stream: Any) -> None:
        """Start copying; only the copy from this place's pinned memory two batches ago is waited for."""
        self.copied.synchronize()
        if any(len(array) > len(room) for array, room in zip_longest(batch, self.pinned, fillvalue=())):
            self.cupy.cuda.get_current_stream().synchronize()
            self.pinned = [empty_pinned(array.shape, array.dtype) for array in batch]
            self.room = [self.cupy.empty(array.shape, array.dtype) for array in batch]
        stream.wait_event(self.free)
        self.there = [room[: len(array)] for array, room in zip(batch, self.room, strict=True)]  # the last may be short
        for array, pinned, there in zip(batch, self.pinned, self.there, strict=True):
            pinned[: len(array)] = array
            there.set(pinned[: len(array)], stream=stream)
        self.copied.record(stream)

    def arrays(self) -> Sequence[Any]:
        """The arrays; whatever is launched from now on finds the batch in them."""
        self.cupy.cuda.get_current_stream().wait_event(self.copied)
        return self.there

    def used(self) -> None:
        """What was launched so far is all that reads these arrays."""
        self.free.record(self.cupy.cuda.get_current_stream())
