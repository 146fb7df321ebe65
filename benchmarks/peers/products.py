"""The products alone: what a train step would take if nothing but its matrix products took time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from _common import cores
from _work import Work
from threadpoolctl import ThreadpoolController

import tinyvit as tv
from tinyvit.study.summary import summary, totals

Product = tuple[np.ndarray, np.ndarray, np.ndarray]  # a, b, out

_random = np.random.default_rng(0)


def _filled(*shape: int) -> np.ndarray:
    return _random.standard_normal(shape, np.float32)


def _linear(x: np.ndarray, y: np.ndarray, weight: np.ndarray, gx: np.ndarray | None) -> Iterator[Product]:
    """Y = X · Wᵀ, ∂L/∂W = ∂L/∂Yᵀ · X and, where asked for, ∂L/∂X = ∂L/∂Y · W; y stands for its gradient too."""
    yield x, weight.T, y
    yield y.T, x, np.empty_like(weight)
    if gx is not None:
        yield y, weight, gx


def _attention(B: int, N: int, h: int, d: int) -> Iterator[Product]:
    """A = Q · Kᵀ and O = A · V, with the two gradients of each; heads lie where the projections put them."""
    q, k, v = np.moveaxis(_filled(B, N, 3, h, d), 2, 0).swapaxes(2, 3)  # (B, h, N, d) each
    gq, gk, gv = np.moveaxis(_filled(B, N, 3, h, d), 2, 0).swapaxes(2, 3)
    o, a, ga = _filled(B, N, h, d).swapaxes(1, 2), _filled(B, h, N, N), _filled(B, h, N, N)
    yield q, k.swapaxes(-1, -2), a
    yield a, v, o
    yield o, v.swapaxes(-1, -2), ga
    yield a.swapaxes(-1, -2), o, gv
    yield ga, k, gq
    yield ga.swapaxes(-1, -2), q, gk


def products(c: tv.ViTConfig, batch: int) -> list[Product]:
    """Every matrix product of a train step with every token: its operands, and the array for its result.

    Each layer has weights of its own. Its tokens it shares with the others, and its backward products come right after
    its forward ones, as no step can do it: both can only make the floor lower.
    """
    N, D, M, K, taken = c.num_patches + 1, c.dim, c.mlp_hidden, c.num_classes, c.channels * c.patch_size**2
    x, y, gx = (_filled(batch * N, D) for _ in range(3))
    hidden, gh, qkv = _filled(batch * N, M), _filled(batch * N, M), _filled(batch * N, 3 * D)
    attention = list(_attention(batch, N, c.num_heads, D // c.num_heads))
    patches, embedded = _filled(batch * c.num_patches, taken), _filled(batch * c.num_patches, D)
    found = [*_linear(patches, embedded, _filled(D, taken), None)]  # nobody asks for the gradient of the image
    for _ in range(c.depth):
        found += [*_linear(x, qkv, _filled(3 * D, D), gx), *attention, *_linear(x, y, _filled(D, D), gx)]
        found += [*_linear(x, hidden, _filled(M, D), gx), *_linear(hidden, y, _filled(D, M), gh)]
    return [*found, *_linear(x[:batch], _filled(batch, K), _filled(K, D), gx[:batch])]


def multiply_adds(found: list[Product]) -> int:
    """How many they take."""
    return sum(out.size * a.shape[-1] for a, _, out in found)


class Products:
    """The floor of a train step, in the fastest of some arrangements.

    The batch is cut into shards, which the cores take in turn, each with BLAS on one thread; or it stays whole, with
    BLAS on all threads. What is fastest on this machine is found out first.

    Attributes:
        arrangement: the fastest, in words.
    """

    def __init__(self, work: Work):
        self._blas, self._pool = ThreadpoolController(), ThreadPoolExecutor(cores())
        batch, c = len(work.labels), work.config
        image = c.num_patches * c.channels * c.patch_size**2 * c.dim  # its gradient, for which nobody asks
        expected = 3 * totals(summary(c), batch)["batch_multiply_adds"] - batch * image
        fastest = float("inf")
        for shards in [0, *(n * cores() for n in (1, 2, 4, 8) if batch % (n * cores()) == 0)]:
            self._rounds = max(shards // cores(), 1)
            self._lists = [products(c, batch // max(shards, 1)) for _ in range(cores() if shards else 1)]
            counted = self._rounds * sum(map(multiply_adds, self._lists))
            assert counted == expected, f"{counted} multiply-adds are not the {expected} of the summary"
            if (seconds := min(self._clocked() for _ in range(2))) < fastest:
                fastest, chosen = seconds, (self._rounds, self._lists)
                self.arrangement = f"{shards} shards, one BLAS thread each" if shards else "whole batch, BLAS threads"
        self._rounds, self._lists = chosen

    def step(self) -> None:
        if len(self._lists) == 1:
            self._multiply(self._lists[0])
        else:
            with self._blas.limit(limits=1, user_api="blas"):
                list(self._pool.map(self._multiply, self._lists))

    def _multiply(self, found: list[Product]) -> None:
        for _ in range(self._rounds):
            for a, b, out in found:
                np.matmul(a, b, out=out)

    def _clocked(self) -> float:
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start
