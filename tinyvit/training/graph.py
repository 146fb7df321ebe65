"""A train step as one CUDA graph: hundreds of launches become one.

A small ViT keeps a GPU waiting for Python. A graph is what a step launched, recorded once for a batch's shape and then
launched as a whole: the same kernels on the same memory, with other numbers in it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyvit.engine import BackendError, Tensor, kernels, random
from tinyvit.engine.backend import namespace_of, namespace_on

WARM_UP = 2  # steps before recording, in which kernels are compiled and plans are made


class StepGraph:
    """Calls `backward(*batch)`, which fills the parameters' gradients, and `update()`; after a warm-up, as a graph.

    A batch of another shape (the last one of an epoch, say) is computed without the graph, and so is every batch if the
    step does what a graph cannot hold, such as dropout of attention weights, whose products are CuPy's; a sentence on
    standard error says so once. Dropout draws from a key that the step's generator gives, so that every step drops
    others, the same ones with a graph and without.

    Args:
        backward: takes arrays on the GPU and returns arrays on the GPU, whose memory the next call reuses. It must not
            wait for the GPU, nor move anything to or from it.
        parameters: the leaves whose `.grad` it fills, all of them in every call.
        update: moves the parameters by their gradients, with kernels alone (`Optimizer.recordable`). On every call it
            is gone through on the host, for the numbers of that step. None leaves the update to the caller.

    Raises:
        BackendError: there are no kernels: cuBLAS's calls through CuPy cannot be recorded.
    """

    def __init__(
        self,
        backward: Callable[..., Sequence[Any]],
        parameters: Sequence[Tensor],
        update: Callable[[], None] | None = None,
    ):
        if not kernels.find("linear", "gpu"):
            raise BackendError("a graph needs the GPU's kernels: they are switched off, or cuBLAS is missing")
        from tinyvit.engine.kernels.gpu import StepNumbers

        self.backward, self.parameters, self.update = backward, parameters, update
        self.numbers = StepNumbers()
        self.shapes: Any = None  # of the batches that the graph is for
        self.calls = 0
        self.recorded: Any = None
        self.told: set[str] = set()
        cupy = namespace_on("gpu").module
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.memory = cupy.cuda.MemoryPool()  # what the graph's kernels write to: nobody else may have it

    def __call__(self, *batch: Any) -> Sequence[Any]:
        """Return what `backward` returns for this batch, arrays on the GPU."""
        self._draw()
        shapes = [(array.shape, array.dtype) for array in batch]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            sizes = " and ".join("×".join(map(str, shape)) for shape, _ in shapes)
            self._say(f"a batch of {sizes} is not of the graph's shape")
            return self._compute(batch)
        self.calls += 1
        if self.recorded:
            self._set_gradients()
            if self.update:
                with self.numbers.renewed():
                    self.update()
            return self._launch(batch)
        if self.calls == WARM_UP + 1 and self._record(batch):
            self.numbers.write()
            return self._launch(batch)
        return self._compute(batch)

    def _draw(self) -> None:
        """The key of this step's dropout: written by a kernel, so that nobody waits."""
        from tinyvit.engine.kernels.gpu import chance_of_step

        chance_of_step().fill(np.uint64(random.generator().integers(2**63)))

    def _sweep(self, batch: Sequence[Any]) -> Sequence[Any]:
        # the keys of the calls, which a graph keeps, are the same always
        with random.on_gpu(), random.using(np.random.default_rng(0)):
            return self.backward(*batch)

    def _compute(self, batch: Sequence[Any]) -> Sequence[Any]:
        outputs = self._sweep(batch)
        if self.update:
            self.update()
        return outputs

    def _record(self, batch: Sequence[Any]) -> bool:
        cupy = namespace_on("gpu").module
        cupy.cuda.get_current_stream().synchronize()
        cupy.get_default_memory_pool().free_all_blocks()
        with self.stream, cupy.cuda.using_allocator(self.memory.malloc):
            self.inputs = [namespace_of(array).empty_like(array) for array in batch]
            try:
                if self.update:  # cannot be taken back once it was gone through: is the sweep one that can be recorded?
                    self._capture(self._sweep)
                    self._forget_gradients()
                with self.numbers.recorded():
                    self.outputs, self.recorded = self._capture(self._compute)
            except RuntimeError as error:  # of which CuPy's NotImplementedError and CUDA's own are kinds
                self._abandon(error)
                return False
        self.gradients = [p.grad for p in self.parameters]
        return True

    def _capture(self, compute: Callable[[Sequence[Any]], Sequence[Any]]) -> tuple[Sequence[Any], Any]:
        """What is computed from the graph's inputs, once the graph is launched; and the graph."""
        self.stream.begin_capture()
        outputs = compute(self.inputs)
        return outputs, self.stream.end_capture()

    def _abandon(self, error: Exception) -> None:
        if self.stream.is_capturing():
            with contextlib.suppress(RuntimeError):  # CUDA says once more that the recording is void
                self.stream.end_capture()
        self._forget_gradients()
        self._say(f"this step cannot be recorded as a graph ({error})")

    def _forget_gradients(self) -> None:
        for p in self.parameters:
            p.grad = None

    def _set_gradients(self) -> None:
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient

    def _launch(self, batch: Sequence[Any]) -> Sequence[Any]:
        for place, array in zip(self.inputs, batch, strict=True):
            place[...] = array
        self.recorded.launch(namespace_on("gpu").module.cuda.get_current_stream())
        return self.outputs

    def _say(self, why: str) -> None:
        if why not in self.told:
            self.told.add(why)
            print(f"tinyvit: {why}: computed without it", file=sys.stderr)
