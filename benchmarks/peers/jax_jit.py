"""JAX: forward, backward and AdamW in one compiled function that may reuse the memory of what it replaces."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import numpy as np
from _work import Work

from peers import functional

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax: Any = import_module("jax")


class Jax:
    """JAX on a CPU."""

    def __init__(self, work: Work, device: str):
        jnp, nn, config = jax.numpy, jax.nn, work.config
        F = functional.Library(jnp, nn.softmax, lambda x: nn.logsumexp(x, -1), lambda x: nn.gelu(x, approximate=False))
        self.images, self.labels = jnp.asarray(work.images), jnp.asarray(work.labels)
        self.weights = {name: jnp.asarray(array) for name, array in work.state().items()}
        self.m = {name: jnp.zeros_like(array) for name, array in self.weights.items()}
        self.v = {name: jnp.zeros_like(array) for name, array in self.weights.items()}
        self.steps = jnp.zeros(())

        def step(w: Any, m: Any, v: Any, steps: Any, images: Any, labels: Any) -> Any:
            loss, gradients = jax.value_and_grad(lambda w: functional.loss(F, w, images, labels, config))(w)
            return loss, (*functional.adamw(jnp, w, gradients, m, v, steps + 1), steps + 1)

        self._step = jax.jit(step, donate_argnums=(0, 1, 2, 3))
        self._logits = jax.jit(lambda w, images: functional.logits(F, w, images, config))

    def step(self) -> float:
        loss, state = self._step(self.weights, self.m, self.v, self.steps, self.images, self.labels)
        self.weights, self.m, self.v, self.steps = jax.block_until_ready(state)
        return float(loss)

    def forward(self) -> np.ndarray:
        return np.asarray(self._logits(self.weights, self.images))
