"""The ops of a neural network.

A fused one is written in elementary ops, against a namespace `F`: given arrays it computes, given Tensors it would
record each of them. So it is its own readable twin; the kernel that does the same in one pass stands in
`engine/kernels`, where there is one.

relu has slope 0 at 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyvit.engine import kernels, random
from tinyvit.engine.backend import namespace_of
from tinyvit.engine.ops import reductions
from tinyvit.engine.primitive import primitive
from tinyvit.engine.tensor import Tensor, plain

# --------------------------------------------------------------------------------------------------------- activations


@primitive
def relu(xp, x):
    """max(x, 0), the tutorial's activation; slope 0 at 0."""
    return xp.maximum(x, 0)


relu.gradients(x=lambda F, gy, y: F.where(y > 0, gy, 0))


@primitive
def sigmoid(xp, x):
    """σ(x) = 1/(1 + e⁻ˣ), without overflow on either side."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))


sigmoid.gradients(x=lambda F, gy, y: gy * (y * (1 - y)))

_TANH_SCALE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715


def _gelu_gate(F: Any, x: Any, approximate: str) -> Any:
    """How much of x gelu lets through: Φ(x), the normal distribution, or what stands in for it."""
    if approximate == "none":
        return 0.5 * (1 + F.erf(x * math.sqrt(0.5)))
    if approximate == "tanh":
        x = F.clip(x, -20, 20)  # the gate is open or shut long before, and x³ would overflow float16
        return 0.5 * (1 + F.tanh(_TANH_SCALE * (x + _TANH_CUBE * x * x * x)))
    if approximate == "quick":
        return 0.5 * (1 + F.tanh(0.851 * x))  # σ(1.702 x)
    raise ValueError(f"gelu has the forms 'none' (erf), 'tanh' and 'quick', not {approximate!r}")


def _gelu_gate_slope(F: Any, x: Any, gate: Any, approximate: str) -> Any:
    """The derivative of the gate."""
    if approximate == "tanh":
        x = F.clip(x, -20, 20)  # as in the gate
    if approximate == "none":
        return F.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    inner = _TANH_SCALE * (1 + 3 * _TANH_CUBE * x * x) if approximate == "tanh" else 0.851
    return 2 * gate * (1 - gate) * inner  # with gate = (1 + tanh u)/2: (1 − tanh² u)/2 · u′


@primitive(fused=True)
def gelu(F, x, approximate="none"):
    """x · Φ(x), with Φ the normal distribution (Hendrycks & Gimpel 2016).

    `approximate`: "none" computes Φ by erf, "tanh" by ½(1 + tanh √(2/π)(x + 0.044715x³)), "quick" by σ(1.702x).
    """
    return x * _gelu_gate(F, x, approximate)


def _gelu_rule(F, gy, x, approximate):
    """∂L/∂x = ∂L/∂y · (Φ(x) + x · Φ′(x))."""
    gate = _gelu_gate(F, x, approximate)
    return gy * (gate + x * _gelu_gate_slope(F, x, gate, approximate))


gelu.gradients(x=_gelu_rule)


@primitive
def softmax(xp, x, axis=-1):
    """exp x / Σ exp x along an axis."""
    return xp.softmax(x, axis)


# ∂L/∂x = y · (∂L/∂y − Σ ∂L/∂y · y), the Jacobian diag(y) − y yᵀ multiplied out
softmax.gradients(x=lambda F, gy, y, axis: y * (gy - F.sum(gy * y, axis=axis, keepdims=True)))


@primitive
def log_softmax(xp, x, axis=-1):
    """x − log Σ exp x along an axis."""
    return _log_softmax(xp, x, axis)


def _log_softmax(F: Any, x: Any, axis: int) -> Any:
    x = x - F.max(x, axis=axis, keepdims=True)
    return x - F.log(F.sum(F.exp(x), axis=axis, keepdims=True))


log_softmax.gradients(x=lambda F, gy, y, axis: gy - F.exp(y) * F.sum(gy, axis=axis, keepdims=True))

# -------------------------------------------------------------------------------------------------------------- linear


def _rows(F: Any, x: Any) -> Any:
    """All leading axes as one: the samples and tokens that share a weight."""
    return F.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


@primitive(fused=True)
def linear(F, x, weight, bias=None):
    """X · Wᵀ + b: (…, in), weight (out, in), bias (out) → (…, out).

    Source: the tutorial's Patch Embedding, E = W_e · flatten(I) + b_e, on rows instead of columns.
    """
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"linear: x of shape {x.shape} does not fit a weight of shape {weight.shape} (out, in)")
    y = F.reshape(F.matmul(_rows(F, x), F.swapaxes(weight, 0, 1)), (*x.shape[:-1], weight.shape[0]))
    return y if bias is None else y + bias


linear.gradients(
    x=lambda F, gy, weight, x_shape: F.reshape(F.matmul(_rows(F, gy), weight), x_shape),  # ∂L/∂x = Wᵀ · ∂L/∂y
    weight=lambda F, gy, x: F.matmul(F.swapaxes(_rows(F, gy), 0, 1), _rows(F, x)),  # ∂L/∂W = Σₙ ∂L/∂yₙ · xₙᵀ
    bias=lambda F, gy: gy,  # ∂L/∂b = Σₙ ∂L/∂yₙ, the sum over what b was broadcast over
)

# ---------------------------------------------------------------------------------------------------------- layer norm


@primitive(fused=True)
def layer_norm(F, x, weight, bias, eps=1e-6):
    """(x − mean) / √(var + eps) · weight + bias over the last axis: (…, D), weight and bias (D) → (…, D).

    Source: Ba, Kiros & Hinton 2016. The tutorial leaves it out; the ViT paper does not.
    """
    if not x.shape[-1:] == weight.shape == bias.shape:
        raise ValueError(
            f"layer_norm: x {x.shape}, weight {weight.shape} and bias {bias.shape} differ in the last axis"
        )
    normed, _ = _standardized(F, x, eps)
    return normed.astype(x.dtype) * weight + bias


def _standardized(F: Any, x: Any, eps: float) -> Any:
    """(x − mean) · s with s = 1/√(var + eps), and s; float16 is squared in float32, for it ends at 65504."""
    wide = x.astype(np.float32) if x.dtype == np.float16 else x
    centred = wide - F.mean(wide, axis=-1, keepdims=True)
    scale = 1 / F.sqrt(F.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return centred * scale, scale


@layer_norm.gradient
def _layer_norm_rule(F, gy, x, weight, eps):
    """With n = (x − mean)·s and g = ∂L/∂n: ∂L/∂x = s · (g − mean g − n · mean(g·n))."""
    n, scale = _standardized(F, x, eps)
    g = gy * weight
    gx = scale * (g - F.mean(g, axis=-1, keepdims=True) - n * F.mean(g * n, axis=-1, keepdims=True))
    return gx, gy * n, gy


@primitive(fused=True)
def add_layer_norm(F, x, branch, weight, bias, eps=1e-6):
    """(s, layer_norm(s)) of the sum s = x + branch: x and branch (…, D), weight and bias (D) → (…, D) twice.

    What a residual layer makes of a branch, and the next branch begins with. Apart they are two passes over memory, and
    in the backward sweep, where both results send a gradient to s, three.
    """
    if x.shape != branch.shape:
        raise ValueError(f"add_layer_norm: x {x.shape} and branch {branch.shape} differ: they must have one shape")
    s = x + branch
    return s, layer_norm.forward(F, s, weight, bias, eps)


@add_layer_norm.gradient
def _add_layer_norm_rule(F, gy, y0, weight, eps):
    """∂L/∂x and ∂L/∂branch are ∂L/∂s: what came to s itself, and through its norm."""
    gs, gnorm = gy
    through_norm, gweight, gbias = _layer_norm_rule(F, gnorm, y0, weight, eps)
    gs = gs + through_norm
    return gs, gs, gweight, gbias


# ----------------------------------------------------------------------------------------------------------- attention


def attention_weights(F: Any, q: Any, k: Any, scale: float | None = None) -> Any:
    """A = softmax(Q · Kᵀ / √d_k): (…, N, d_k), (…, M, d_k) → (…, N, M)."""
    scaled = q * _scale(q, scale)  # before the product, so that float16 does not overflow
    return F.softmax(F.matmul(scaled, F.swapaxes(k, -1, -2)), axis=-1)


def _scale(q: Any, scale: float | None) -> float:
    return float(q.shape[-1] ** -0.5) if scale is None else scale


@primitive(fused=True)
def scaled_dot_product_attention(F, q, k, v, scale=None):
    """O = softmax(Q · Kᵀ · scale) · V: (…, N, d_k), (…, M, d_k), (…, M, d_v) → (…, N, d_v); scale is 1/√d_k if None.

    Source: the tutorial's Multi-Head Self-Attention, A and O; Vaswani et al. 2017.
    """
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape} and v {v.shape} differ in d_k or in the number of keys: "
            "they must be (…, N, d_k), (…, M, d_k) and (…, M, d_v)"
        )
    return F.matmul(attention_weights(F, q, k, scale), v)


@scaled_dot_product_attention.gradient
def _attention_rule(F, gy, q, k, v, scale):
    """With S = Q · Kᵀ · scale and A = softmax(S): ∂L/∂S = A · (∂L/∂A − Σ ∂L/∂A · A)."""
    a = attention_weights(F, q, k, scale)
    gv = F.matmul(F.swapaxes(a, -1, -2), gy)  # ∂L/∂V = Aᵀ · ∂L/∂O
    ga = F.matmul(gy, F.swapaxes(v, -1, -2))  # ∂L/∂A = ∂L/∂O · Vᵀ
    gs = a * (ga - F.sum(ga * a, axis=-1, keepdims=True)) * _scale(q, scale)
    return F.matmul(gs, k), F.matmul(F.swapaxes(gs, -1, -2), q), gv


@primitive(fused=True)
def multi_head_attention(F, qkv, num_heads):
    """O₁ … O_h side by side, from Q, K and V of all heads side by side: (B, N, 3·D) → (B, N, D), D = h · d_k.

    Source: the tutorial's Multi-Head Self-Attention between its projections: A and O of each head, and their concat.
    """
    if qkv.ndim != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(
            f"multi_head_attention: qkv has the shape {qkv.shape}; it must be (B, N, 3·D) with D a multiple of "
            f"the {num_heads} heads"
        )
    q, k, v = heads_of(F, qkv, num_heads)
    heads = F.matmul(attention_weights(F, q, k), v)
    return F.reshape(F.swapaxes(heads, 1, 2), (*qkv.shape[:-1], qkv.shape[-1] // 3))


def heads_of(F: Any, qkv: Any, num_heads: int) -> Any:
    """Q, K and V of all heads: (B, N, 3·D) → three times (B, h, N, d_k)."""
    B, N, width = qkv.shape
    split = F.reshape(qkv, (B, N, 3, num_heads, width // (3 * num_heads)))
    return [split[:, :, i].swapaxes(1, 2) for i in range(3)]


@multi_head_attention.gradient
def _multi_head_rule(F, gy, qkv, num_heads):
    """Each head's gradients are those of attention; they go back to where Q, K and V came from."""
    q, k, v = heads_of(F, qkv, num_heads)
    B, h, N, d = q.shape
    heads = F.swapaxes(F.reshape(gy, (B, N, h, d)), 1, 2)
    parts = [F.swapaxes(g, 1, 2) for g in _attention_rule(F, heads, q, k, v, None)]
    return (F.reshape(F.stack(parts, axis=2), qkv.shape),)


# ---------------------------------------------------------------------------------------------------------------- loss


@primitive(fused=True)
def _cross_entropy(F, logits, target):
    """−Σ target · log softmax(logits), one number a row."""
    log_p = _log_softmax(F, logits, -1)
    return -F.sum(target * F.where(_impossible(F, target, log_p), 0, log_p), axis=-1)


def _impossible(F: Any, target: Any, log_p: Any) -> Any:
    """Classes of probability 0 that are no target: 0 · log 0 is 0 here, not NaN."""
    return (target == 0) & ~F.isfinite(log_p)


@_cross_entropy.gradient
def _cross_entropy_rule(F, gy, logits, target):
    """∂L/∂logits = p · Σ target − target, which is p − y for a target that sums to 1; ∂L/∂target = −log p."""
    log_p = _log_softmax(F, logits, -1)
    gy = F.expand_dims(gy, -1)
    return gy * (F.exp(log_p) * F.sum(target, axis=-1, keepdims=True) - target), -gy * log_p


def cross_entropy(logits: Any, targets: Any, label_smoothing: float = 0.0, reduction: str = "mean") -> Any:
    """Cross-entropy of softmax(logits) against class numbers or distributions.

    Args:
        logits: (…, K).
        targets: integer class numbers (…), or distributions (…, K), whose gradient flows too.
        label_smoothing: share of each target that is spread evenly over the classes (Szegedy et al. 2016).
        reduction: "mean" or "sum" over all rows, or "none" for one loss a row.

    Returns:
        The loss in nats: a single number, or (…) for "none".

    Raises:
        ValueError: shapes that do not fit, class numbers outside 0 … K − 1, or an unknown reduction.
        TypeError: targets that are neither integers nor floating-point numbers.

    >>> import numpy as np, tinyvit as tv
    >>> round(tv.ops.cross_entropy(tv.tensor([[0.0, 0.0]]), np.array([1])).item(), 6)  # log 2
    0.693147
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; it is a share in [0, 1]")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction is 'mean', 'sum' or 'none', not {reduction!r}")
    scores = plain(logits)
    classes = scores.shape[-1]
    target = _distributions(targets, scores)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    losses = _cross_entropy(logits, target)
    if reduction == "none":
        return losses
    return reductions.mean(losses) if reduction == "mean" else reductions.sum(losses)


def _distributions(targets: Any, scores: Any) -> Any:
    """Class numbers (…) or distributions (…, K), as distributions beside the scores."""
    target = targets if hasattr(targets, "dtype") else np.asarray(targets)
    xp = namespace_of(scores, plain(target)) if isinstance(target, Tensor) else namespace_of(scores)
    if target.dtype.kind in "iu":
        return _one_hot(plain(target), scores, xp)
    if target.dtype.kind != "f":
        raise TypeError(f"cross_entropy: targets are class numbers or distributions, not {target.dtype}")
    if target.shape == scores.shape[:-1]:
        raise TypeError(
            f"cross_entropy: class numbers must be integers, and these are {target.dtype}: use np.array([…])"
        )
    if target.shape != scores.shape:
        raise ValueError(f"cross_entropy: distributions of shape {target.shape} for logits of shape {scores.shape}")
    return target if isinstance(target, Tensor) else xp.asarray(target, dtype=scores.dtype)


def _one_hot(numbers: Any, scores: Any, xp: Any) -> Any:
    classes = scores.shape[-1]
    if numbers.shape != scores.shape[:-1]:
        raise ValueError(f"cross_entropy: class numbers of shape {numbers.shape} for logits of shape {scores.shape}")
    if isinstance(numbers, np.ndarray) and numbers.size and not 0 <= numbers.min() <= numbers.max() < classes:
        # checked where they come from the host: on a GPU it would have to wait, and a wrong class is an empty target
        raise ValueError(f"cross_entropy: class numbers {numbers.min()} … {numbers.max()} for {classes} classes")
    return (xp.asarray(numbers)[..., None] == xp.arange(classes)).astype(scores.dtype)


# ------------------------------------------------------------------------------------------------------------- dropout


def dropout(x: Any, p: float = 0.5, rng: np.random.Generator | None = None) -> Any:
    """Zero each element with probability p and scale the others by 1/(1 − p), so that the expectation stays.

    Args:
        x: any shape.
        p: probability in [0, 1).
        rng: where the choice comes from; this thread's `tinyvit.engine.random` generator if None.

    Source: Srivastava et al. 2014.
    """
    return x * _survivors(x, x.shape, probability(p), rng) if p else x


def drop_path(x: Any, p: float = 0.1, rng: np.random.Generator | None = None) -> Any:
    """Zero whole samples (rows of axis 0) with probability p and scale the others by 1/(1 − p): stochastic depth.

    Source: Huang et al. 2016; Larsson et al. 2017.
    """
    return x * _survivors(x, (x.shape[0],) + (1,) * (x.ndim - 1), probability(p), rng) if p else x


def _survivors(x: Any, shape: tuple[int, ...], p: float, rng: np.random.Generator | None) -> Any:
    """1/(1 − p) where something survives, else 0; drawn on the host, or (`random.on_gpu`) by a kernel from a key."""
    rng, data = rng or random.generator(), plain(x)
    xp = namespace_of(data)
    kernel = kernels.find("survivors", "gpu") if xp.device == "gpu" and random.drawn_on_gpu() else None
    if kernel and (drawn := kernel.forward(shape, p, data.dtype, int(rng.integers(2**63)))) is not None:
        return drawn
    kept = rng.random(shape, dtype=np.float32) >= p
    return xp.asarray(kept.astype(data.dtype) / data.dtype.type(1 - p))


def probability(p: float) -> float:
    """Return p if it is a probability that something is dropped: in [0, 1).

    Raises:
        ValueError: it is not.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: the probability {p} is not in [0, 1)")
    return p
