"""Loss scaling: float16 ends at 6e-8, and most gradients of activations lie below; so the loss is made larger first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyvit.engine import Tensor
from tinyvit.engine.backend import namespace_of
from tinyvit.training.optim import clip_grad_norm

START, FACTOR, PATIENCE = 2.0**16, 2.0, 2000


class LossScale:
    """A factor on the loss that is halved when a gradient overflows, and doubled after 2000 steps without.

    Source: Micikevicius et al., *Mixed Precision Training*, ICLR 2018, section 3.2; the numbers are PyTorch's.

    >>> import tinyvit as tv
    >>> scale, w = LossScale(8.0), tv.tensor([2.0], requires_grad=True)
    >>> scale.of((w * w).sum()).backward()
    >>> w.grad.item(), scale.undo([w]), w.grad.item()
    (32.0, True, 4.0)
    """

    def __init__(self, value: float = START):
        self.value = value
        self.good = 0  # steps since it was last changed
        self.array: Any = None  # the value where the loss is, so that a graph finds the one of its step

    def of(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale."""
        if self.array is None:
            self.array = namespace_of(loss.data).full((), self.value, dtype=np.float32)
        return loss * self.array

    def undo(self, parameters: Sequence[Tensor]) -> bool:
        """Divide all gradients by the scale and return whether they are finite; if not, the step must be skipped.

        The only place where training waits for the GPU.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not math.isfinite(float(clip_grad_norm(parameters, None))):
            self._become(self.value / FACTOR)
            return False
        for gradient in gradients:
            gradient.data *= np.float32(1 / self.value)
            gradient.bump_version()
        self.good += 1
        if self.good >= PATIENCE:
            self._become(self.value * FACTOR)
        return True

    @property
    def lost(self) -> bool:
        """Whether no scale is small enough: the gradients are not finite by themselves."""
        return self.value < 1

    def state(self) -> dict[str, float]:
        """Return what a run needs to go on."""
        return {"loss_scale": self.value, "loss_scale_good": self.good}

    def load_state(self, numbers: Mapping[str, Any]) -> None:
        """Go to where `state` was taken."""
        self._become(float(numbers["loss_scale"]))
        self.good = int(numbers["loss_scale_good"])

    def _become(self, value: float) -> None:
        self.value, self.good = value, 0
        if self.array is not None:
            self.array.fill(value)
