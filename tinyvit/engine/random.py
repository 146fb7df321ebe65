"""Where chance comes from: one NumPy generator a thread, on the host, so that every device makes the same choices.

Training on a GPU may have its dropout drawn there, from keys that this generator gives: see `on_gpu`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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


_on_gpu = ContextVar("dropout on a GPU is drawn there", default=False)


@contextmanager
def on_gpu() -> Iterator[None]:
    """Draw dropout of arrays on a GPU there, inside the block: nothing is moved, but a CPU would drop others."""
    token = _on_gpu.set(True)
    try:
        yield
    finally:
        _on_gpu.reset(token)


def drawn_on_gpu() -> bool:
    """Whether `on_gpu` holds here."""
    return _on_gpu.get()
