"""Parallelism has one idea: the gradient shard.

A batch is cut into a fixed number of shards. A worker, a thread whose matrix products take one BLAS thread, runs
forward and backward of whole shards, on a tape of its own; the shards' gradients are added in the order of the shards.
So an op stays single-threaded and simple, the arrays between two ops are small enough for the cache, only the shards
that are being worked on are in memory, and the result is the same to the last bit for any number of workers.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import operator
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from tinyvit.engine import TapeError, Tensor, random, tape
from tinyvit.engine.backend import namespace_of
from tinyvit.engine.kernels.memory import keep_freed_memory, share_one_arena
from tinyvit.engine.tape import Leaf, Node
from tinyvit.engine.tensor import gather, plain
from tinyvit.vit import ViTConfig

share_one_arena()  # here already, since it must be said before other threads begin

T = TypeVar("T")
R = TypeVar("R")
SHARDS = 8  # of a batch on a CPU, if nobody says otherwise: a constant, so that a run does not depend on the machine
SHARD_TOKENS = 768  # below it, adding the weights' gradients shows beside computing them
WORTH = 3e7  # multiply-adds of a layer's forward pass that make a shard worth its own trip through the layers


def default_workers() -> int:
    """Return TINYVIT_WORKERS if it is set, else the number of cores that this process may use."""
    given = os.environ.get("TINYVIT_WORKERS", "")
    if not given:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"TINYVIT_WORKERS is {given!r}; it must be a whole number of at least 1")
    return int(given)


def parallel_backward(
    loss_fn: Callable[..., Tensor], *batch: Any, shards: int | None = None, workers: int | None = None
) -> Tensor:
    """Add the gradient of a batch's mean loss to the `.grad` of every leaf, shard by shard, on several threads.

    Args:
        loss_fn: takes a shard of each array of the batch and returns the mean loss of its rows, a single number. It
            is called from several threads at once, each with a random generator (`tv.random`) of its own.
        batch: arrays or Tensors of the same length along axis 0, the samples; for instance images and labels.
        shards: how many parts the batch is cut into, at most one a sample; by default 8 on a CPU and 1 on a GPU. The
            bits of the result depend on it, and on nothing else. More shards take less memory; a small model is
            fastest in one (`shards_for` says how many suit a ViT).
        workers: threads; by default TINYVIT_WORKERS, or one a core. On a GPU there is one.

    Returns:
        The mean loss of the batch, off the tape: a Tensor of one number, on the batch's device.

    Raises:
        ValueError: arrays of different or no length, shards or workers below 1, or a loss that is no single number.
        TapeError: the loss was not recorded. After this, or any error in loss_fn, the gradients are as they were.

    >>> import numpy as np, tinyvit as tv
    >>> w = tv.tensor([[1.0, 2.0]], requires_grad=True)
    >>> x, y = np.eye(2, dtype=np.float32), np.zeros((2, 1), np.float32)
    >>> parallel_backward(lambda x, y: ((tv.ops.linear(x, w) - y) ** 2).mean(), x, y)
    Tensor(2.5, dtype=float32)
    >>> w.grad
    Tensor([[1., 2.]], dtype=float32)
    """
    rows = _length(batch)
    if shards is None:
        shards = default_shards(namespace_of(*map(plain, batch)).device)
    cuts = cut(rows, shards)
    chances = random.generator().spawn(len(cuts))
    sums = _Sums()

    def sweep(shard: int) -> Any:
        with random.using(chances[shard]), tape.recording(True):
            loss = loss_fn(*(part[cuts[shard]] for part in batch))
        node = _single_number(loss)
        xp = namespace_of(loss.data)
        share = xp.full(loss.shape, (cuts[shard].stop - cuts[shard].start) / rows, dtype=loss.dtype)
        with tape.recording(False):
            for leaf, gradient, _ in tape.sweep([(node, share)]):
                sums.add(leaf, shard, gradient)
        return (loss.data * share).reshape(())

    losses = in_workers(sweep, range(len(cuts)), workers)
    sums.commit()
    return Tensor(functools.reduce(operator.add, losses[1:], losses[0][...]))


def _length(batch: Sequence[Any]) -> int:
    lengths = {len(part) for part in batch}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(f"the arrays of a batch must have one length, of at least 1; these have {sorted(lengths)}")
    return lengths.pop()


def _single_number(loss: Any) -> Node:
    if not isinstance(loss, Tensor) or loss.size != 1:
        shape = getattr(loss, "shape", None)
        raise ValueError(
            f"loss_fn must return the mean loss, a Tensor of one number, not {type(loss).__name__} {shape}"
        )
    if loss.node is None:
        raise TapeError("the loss was computed from nothing with requires_grad=True")
    return loss.node


class _Sums:
    """The gradients of all leaves, each added up in the order of the shards whatever order they arrive in.

    The sum of a leaf is begun in its place in a flat buffer, where it has one. A gradient whose turn has not come yet
    waits; workers keep about the same pace, so that few do.
    """

    def __init__(self) -> None:
        self.leaves: dict[Leaf, _Sum] = {}
        self.lock = threading.Lock()

    def add(self, leaf: Any, shard: int, gradient: Any) -> None:
        with self.lock:
            found = self.leaves.setdefault(leaf, _Sum(leaf))
        found.add(shard, gradient)

    def commit(self) -> None:
        """Give the leaves their gradients, now that no shard can fail any more."""
        for leaf, found in self.leaves.items():
            gather(leaf, found.finish(), owned=True)


class _Sum:
    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.total: Any = None
        self.turn = 0
        self.waiting: dict[int, Any] = {}
        self.lock = threading.Lock()

    def add(self, shard: int, gradient: Any) -> None:
        with self.lock:
            self.waiting[shard] = gradient
            while self.turn in self.waiting:
                self._take(self.waiting.pop(self.turn))
                self.turn += 1

    def finish(self) -> Any:
        for shard in sorted(self.waiting):  # a shard before these did not use the leaf
            self._take(self.waiting.pop(shard))
        return self.total

    def _take(self, gradient: Any) -> None:
        if self.total is not None:
            self.total += gradient
        elif (place := self.leaf.place()) is not None:
            place[...] = gradient
            self.total = place
        else:
            self.total = gradient.copy()


# -------------------------------------------------------------------------------------------------------------- shards


def default_shards(device: str) -> int:
    """Return how many shards a batch is cut into if nobody says: a constant of the device, not of its cores."""
    return SHARDS if device == "cpu" else 1


def shards_for(config: ViTConfig, batch_size: int, device: str = "cpu") -> int:
    """Return into how many shards a batch is cut best: 8, 4 for few tokens, fewer for little work, one on a GPU.

    Each shard is a walk through all layers, which costs the same however few images it takes along, and adds a gradient
    for every weight.

    >>> shards_for(ViTConfig.named("vit_tiny_patch16_224"), 64)
    8
    >>> shards_for(ViTConfig.named("vit_tiny_patch16_224"), 16)
    4
    >>> shards_for(ViTConfig(image_size=8, patch_size=4, channels=1, dim=64, num_heads=4), 128)
    1
    """
    tokens = config.num_patches + config.num_prefix_tokens
    layer = batch_size * tokens * config.dim * (4 * config.dim + 2 * config.mlp_hidden + 2 * tokens)
    most = default_shards(device)
    most = most if batch_size * tokens >= most * SHARD_TOKENS else -(-most // 2)
    return max(1, min(most, batch_size, int(layer / WORTH)))


def cut(rows: int, shards: int) -> list[slice]:
    """Cut rows into so many stretches of equal length, as near as can be; none is empty.

    >>> cut(10, 4)
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    """
    if shards < 1:
        raise ValueError(f"shards is {shards}; it must be at least 1")
    shards = min(shards, rows)
    ends = [*itertools.accumulate(rows // shards + (i < rows % shards) for i in range(shards))]
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def map_shards(function: Callable[..., Any], *batch: Any, shards: int, workers: int | None = None) -> list[Any]:
    """Return [function(shard of each array), …] in the order of the shards, computed by workers without a tape."""
    cuts = cut(_length(batch), shards)

    def compute(rows: slice) -> Any:
        with tape.no_grad():
            return function(*(part[rows] for part in batch))

    return in_workers(compute, cuts, workers)


# ------------------------------------------------------------------------------------------------------------- workers


def in_workers(function: Callable[[T], R], items: Sequence[T], workers: int | None = None) -> list[R]:
    """Return [function(item), …], computed by worker threads that take the items in turn.

    Matrix products take one BLAS thread meanwhile, whatever the number of workers: BLAS's own threads would fight
    with ours, and their number would change the bits. NumPy's error state and `unfused()` are the caller's.

    Raises:
        Exception: the first item's that failed, after all workers have stopped.
    """
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    workers = min(workers, len(items))
    keep_freed_memory()
    if workers <= 1 or _thread.is_worker:  # a worker waits for no other, or all might wait
        with one_blas_thread():
            return [function(item) for item in items]
    with one_blas_thread():
        twins_in = tape.mode.twins_in
        stop = threading.Event()

        def work(item: T) -> R:
            if stop.is_set():
                raise CancelledError
            _thread.is_worker = True
            tape.mode.twins_in = twins_in
            try:
                return function(item)
            except BaseException:
                stop.set()
                raise

        futures = [_threads(workers).submit(contextvars.copy_context().run, work, item) for item in items]
        try:
            wait(futures)
        finally:
            stop.set()  # where the wait was interrupted
        errors = [error for f in futures if (error := f.exception()) and not isinstance(error, CancelledError)]
        if errors:
            raise errors[0]
        return [f.result() for f in futures]


class _Thread(threading.local):
    is_worker = False


_thread = _Thread()


@functools.lru_cache
def _threads(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="tinyvit-worker")


@functools.lru_cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()  # looks at all libraries that are loaded: once


def one_blas_thread() -> AbstractContextManager[Any]:
    """Let a matrix product use one thread inside the block.

    >>> with one_blas_thread():
    ...     pass
    """
    limits: AbstractContextManager[Any] = _thread_pools().limit(limits=1, user_api="blas")
    return limits
