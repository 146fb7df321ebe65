"""HIPS autograd, the tape on NumPy before tinyvit: its forward and backward, AdamW in NumPy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from _work import Work

from peers import functional

autograd: Any = import_module("autograd")
anp: Any = import_module("autograd.numpy")
special: Any = import_module("autograd.scipy.special")  # with the slopes of erf and logsumexp


def _softmax(x: Any) -> Any:
    return anp.exp(x - special.logsumexp(x, axis=-1, keepdims=True))


def _gelu(x: Any) -> Any:
    return x * (0.5 * (1 + special.erf(x * 0.5**0.5)))


F = functional.Library(anp, _softmax, lambda x: special.logsumexp(x, axis=-1), _gelu)


class HipsAutograd:
    """HIPS autograd on a CPU."""

    def __init__(self, work: Work, device: str):
        self.work = work
        self.weights = work.state()
        self.m = {name: np.zeros_like(array) for name, array in self.weights.items()}
        self.v = {name: np.zeros_like(array) for name, array in self.weights.items()}
        self.steps = 0
        self._gradients = autograd.value_and_grad(
            lambda w: functional.loss(F, w, work.images, work.labels, work.config)
        )

    def step(self) -> float:
        self.steps += 1
        loss, gradients = self._gradients(self.weights)
        self.weights, self.m, self.v = functional.adamw(np, self.weights, gradients, self.m, self.v, self.steps)
        return float(loss)

    def forward(self) -> np.ndarray:
        return functional.logits(F, self.weights, self.work.images, self.work.config)
