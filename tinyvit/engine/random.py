"""Where chance comes from: one NumPy generator a thread, on the host, so that every device makes the same choices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class _State(threading.local):
    def __init__(self) -> None:
        self.generator = np.random.default_rng()


_state = _State()


def generator() -> np.random.Generator:
    """Return this thread's generator."""
    return _state.generator


def seed(number: int) -> None:
    """Start this thread's generator anew from a number.

    >>> seed(0)
    >>> round(generator().random(), 6)
    0.636962
    """
    _state.generator = np.random.default_rng(number)


@contextmanager
def using(rng: np.random.Generator) -> Iterator[None]:
    """Draw from `rng` inside the block: a train step gives each step a generator of its own, and so can be repeated."""
    previous, _state.generator = _state.generator, rng
    try:
        yield
    finally:
        _state.generator = previous
