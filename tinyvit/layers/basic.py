"""The layers that every network has."""

from __future__ import annotations

import numpy as np

from tinyvit.engine import Tensor, ops
from tinyvit.engine.ops.nn import probability
from tinyvit.layers.module import Module, Parameter, xavier_uniform


class Linear(Module):
    """y = x · Wᵀ + b: (…, in) → (…, out), with `weight` (out, in) and `bias` (out).

    Source: the tutorial's W · x + b, for rows x.

    >>> Linear(3, 2)(np.zeros((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, rng: np.random.Generator | None = None):
        self.weight = Parameter(xavier_uniform((out_features, in_features), rng))
        self.bias: Parameter | None = Parameter(np.zeros(out_features, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return ops.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    """Each token to mean 0 and variance 1, then scaled and shifted: (…, D) → (…, D), `weight` and `bias` (D).

    Source: Ba, Kiros & Hinton 2016. The tutorial leaves it out; without it (and residuals) deep encoders do not train.

    >>> LayerNorm(2)(np.array([[1.0, 3.0]])).numpy().round(3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        self.weight = Parameter(np.ones(dim, np.float32))
        self.bias = Parameter(np.zeros(dim, np.float32))
        self.eps = eps

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """(…, D) → (…, D); given a branch (…, D) too, x + branch and the norm of that, made in one pass."""
        if branch is not None:
            return ops.add_layer_norm(x, branch, self.weight, self.bias, self.eps)
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class LayerScale(Module):
    """A learned factor for each channel, small at first: (…, D) → (…, D), `gamma` (D). Source: Touvron et al. 2021."""

    def __init__(self, dim: int, initial: float):
        self.gamma = Parameter(np.full(dim, initial, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        return x * self.gamma


class Dropout(Module):
    """Zero elements with probability p while training. Source: Srivastava et al. 2014."""

    def __init__(self, p: float):
        self.p = probability(p)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; x itself when p is 0 or in evaluation."""
        return ops.dropout(x, self.p) if self.training and self.p else x


class DropPath(Module):
    """Skip a residual branch for whole samples with probability p while training. Source: Huang et al. 2016."""

    def __init__(self, p: float):
        self.p = probability(p)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, …); x itself when p is 0 or in evaluation."""
        return ops.drop_path(x, self.p) if self.training and self.p else x
