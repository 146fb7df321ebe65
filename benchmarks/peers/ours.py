"""tinyvit: on a CPU the batch is cut into shards, on a GPU it is one sweep."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from _work import LR, WEIGHT_DECAY, Work

import tinyvit as tv
from tinyvit.engine import kernels as kernel_switch
from tinyvit.engine.backend import namespace_on
from tinyvit.training import AdamW, infer, parallel_backward, shards_for
from tinyvit.training.graph import StepGraph


class EveryToken(tv.ViT):
    """A ViT that takes each token through the whole last layer, as the other libraries do, though nobody reads it."""

    def forward(self, images: Any) -> tv.Tensor:
        assert self.head is not None
        return self.head(self.pooled(self.features(images)))


class Ours:
    """tinyvit; without kernels it runs its array code, with checkpoint it computes encoder layers twice.

    With `every_token` it does not skip what its head does not read. On a GPU, `precision` is what it computes in, and
    with `graph` the step is one CUDA graph.
    """

    def __init__(
        self,
        work: Work,
        device: str,
        kernels: bool = True,
        checkpoint: bool = False,
        precision: str = "fp32",
        graph: bool = False,
        every_token: bool = False,
    ):
        xp = namespace_on(device)
        kind = EveryToken if every_token else tv.ViT
        self.model = kind(replace(work.config, checkpoint=True) if checkpoint else work.config)
        self.model.load_state_dict(work.state())
        self.model.to(device=device)
        self.optimizer = AdamW(self.model.named_parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        self.images, self.labels = xp.asarray(work.images), xp.asarray(work.labels)
        self.device, self.kernels = device, kernels
        self.precision = precision
        self.shards = shards_for(work.config, len(work.labels), device)
        self.graph = StepGraph(self._sweep, self.optimizer.parameters, self.optimizer.step) if graph else None
        self._backward = self.graph or self._sweep

    def step(self) -> float:
        return float(self.queue())  # on a GPU this waits

    def queue(self) -> Any:
        """Make a step and return its loss, without waiting for it."""
        with self._switched():
            self.optimizer.zero_grad()
            (loss,) = self._backward(self.images, self.labels)
            if not self.graph:
                self.optimizer.step()
            return loss

    def _sweep(self, images: Any, labels: Any) -> tuple[Any]:
        with tv.precision(self.precision):
            return (parallel_backward(self._loss, images, labels, shards=self.shards).data,)

    def forward(self) -> np.ndarray:
        with self._switched():
            return np.asarray(infer(self.model, self.images))

    def _loss(self, images: Any, labels: Any) -> tv.Tensor:
        return tv.ops.cross_entropy(self.model(images), labels)

    def _switched(self) -> AbstractContextManager[None]:
        return nullcontext() if self.kernels else kernel_switch.switched(False)
