"""The Transformer encoder: the tutorial's Multi-Head Self-Attention and Feedforward Network, in residual layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyvit.engine import Tensor, ops
from tinyvit.engine.ops.nn import attention_weights, heads_of
from tinyvit.layers.basic import Dropout, DropPath, LayerNorm, LayerScale, Linear
from tinyvit.layers.module import Module, Parameter


def swiglu(x: Tensor) -> Tensor:
    """silu(a) · b, silu(a) = a · σ(a), of the two halves of x = [a, b]: (…, 2M) → (…, M). Source: Shazeer 2020."""
    dtype, half = x.dtype, x.shape[-1] // 2
    if dtype.itemsize == 2:  # under `tv.precision`: only kernels multiply 16 bits
        x = x.astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return (a * ops.sigmoid(a) * b).astype(dtype)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": ops.relu,  # the tutorial's
    "gelu": ops.gelu,  # the ViT paper's
    "gelu_tanh": lambda x: ops.gelu(x, "tanh"),
    "gelu_quick": lambda x: ops.gelu(x, "quick"),
    "swiglu": swiglu,
}


class MultiHeadSelfAttention(Module):
    """h heads, each softmax(Q · Kᵀ / √d_k) · V of its own projections of X: (B, N, D) → (B, N, D).

    Source: the tutorial's MHSA. W_Q, W_K and W_V of all heads are one matrix `qkv` (3D, D), W_O is `proj`.

    Raises:
        ValueError: h does not divide D.

    >>> from tinyvit import tensor
    >>> MultiHeadSelfAttention(dim=8, num_heads=2)(tensor(np.zeros((1, 5, 8)))).shape
    (1, 5, 8)
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ):
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"{num_heads} heads cannot share a width of {dim}: the width must be a multiple of the heads"
            )
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, qkv_bias, rng)
        self.proj = Linear(dim, dim, rng=rng)
        self.attention_dropout = Dropout(attention_dropout)
        self.dropout = Dropout(dropout)

    def queries_keys_values(self, x: Tensor) -> list[Tensor]:
        """Q, K and V of all heads: (B, N, D) → three times (B, h, N, d_k)."""
        qkv = self.qkv(x).astype(self.qkv.weight.dtype)  # of 16 bits under `tv.precision`, which only kernels multiply
        return heads_of(ops, qkv, self.num_heads)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """(B, N, D) → (B, N, D), or (B, first, D) where only the first tokens' results are wanted."""
        if self.training and self.attention_dropout.p:
            q, k, v = self.queries_keys_values(x)  # (B, h, N, d_k)
            heads = self.attention_dropout(attention_weights(ops, q, k)) @ v
            concatenated = heads.swapaxes(1, 2).reshape(x.shape)  # concat(O₁, …, O_h)
        else:
            concatenated = ops.multi_head_attention(self.qkv(x), self.num_heads)
        if first is not None:  # of 16 bits under `tv.precision`, which only kernels multiply
            concatenated = _first(concatenated.astype(self.proj.weight.dtype), first)
        return self.dropout(self.proj(concatenated))

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention of every position to every other, to look at: (B, N, D) → (B, h, N, N)."""
        q, k, _ = self.queries_keys_values(x)
        return attention_weights(ops, q, k)


class FeedForward(Module):
    """FFN(X) = W₂ · act(W₁ · X + b₁) + b₂: (…, D) → (…, D). Source: the tutorial's FFN, whose act is ReLU.

    `hidden` is the width that W₂ reads; with "swiglu" W₁ gives twice as much.

    Raises:
        ValueError: the activation is unknown.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: str = "gelu",
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: use one of {', '.join(ACTIVATIONS)}")
        self.fc1 = Linear(dim, 2 * hidden if activation == "swiglu" else hidden, rng=rng)
        self.fc2 = Linear(hidden, dim, rng=rng)
        self.activation = activation
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        hidden = self.dropout(ACTIVATIONS[self.activation](self.fc1(x)))
        return self.dropout(self.fc2(hidden))


class EncoderLayer(Module):
    """x + MHSA(norm(x)), then x + FFN(norm(x)): (B, N, D) → (B, N, D).

    Source: Dosovitskiy et al. 2021, equations 2 and 3 (pre-norm). The tutorial leaves out the residuals and the
    LayerNorms. LayerScale and DropPath, where wanted, act on the two branches.

    A sum is made by the norm that comes next, in its own pass over memory. So a layer may be given its input as two
    terms, x and a branch, and with `summed=False` gives its result as two: the next layer's norm makes the sum then.

    After attention no token sees another. So where only the `first` tokens will be read, as the class token of a last
    layer, the others stop there: the same results for those that are read, and the same gradients.

    >>> from tinyvit import tensor
    >>> layer, x = EncoderLayer(dim=8, num_heads=2, hidden=16), tensor(np.zeros((1, 5, 8)))
    >>> layer(x).shape, layer(x, first=1).shape
    ((1, 5, 8), (1, 1, 8))
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        activation: str = "gelu",
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        eps: float = 1e-6,
        rng: np.random.Generator | None = None,
    ):
        self.norm1 = LayerNorm(dim, eps)
        self.attn = MultiHeadSelfAttention(dim, num_heads, qkv_bias, dropout, attention_dropout, rng)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale else None
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = FeedForward(dim, hidden, activation, dropout, rng)
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale else None
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, branch: Tensor | None = None, summed: bool = True, first: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, N, D) → (B, N, D) or (B, first, D), of x or of x + branch; two terms where it is not to be summed."""
        x, normed = (x, self.norm1(x)) if branch is None else self.norm1(x, branch)
        attended = _scaled(self.ls1, self.attn(normed, first))
        if first is not None:
            x = _first(x, first)
        x, normed = self.norm2(x, self.drop_path(attended))
        branch = self.drop_path(_scaled(self.ls2, self.mlp(normed)))
        return x + branch if summed else (x, branch)


def _first(x: Tensor, n: int) -> Tensor:
    """The first n tokens, in an array of their own: no kernel takes a view, and it would keep all tokens."""
    return x[:, :n] * 1


def _scaled(scale: LayerScale | None, branch: Tensor) -> Tensor:
    return scale(branch) if scale else branch


class PreLogits(Linear):
    """tanh(W · x + b): (B, D) → (B, W), a hidden layer before the head. Source: Dosovitskiy et al. 2021, 3.1."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, W)."""
        return ops.tanh(super().forward(x).astype(self.weight.dtype))  # of 16 bits under `tv.precision`


class ClassificationHead(Linear):
    """W_class · x + b_class: (B, D) → (B, K) logits. Starts at zero, so that every class is equally likely at first.

    Source: the tutorial's Classification Head, without its softmax: training takes the softmax together with the
    cross-entropy (`ops.cross_entropy`), whose gradient for the logits is p − y.
    """

    def __init__(self, dim: int, num_classes: int):
        self.weight = Parameter(np.zeros((num_classes, dim), np.float32))
        self.bias = Parameter(np.zeros(num_classes, np.float32))

    def probabilities(self, x: Tensor) -> Tensor:
        """O_class = softmax(W_class · x + b_class): (B, D) → (B, K)."""
        return ops.softmax(self(x))
