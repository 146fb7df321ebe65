"""The ops of a neural network. Fused ones stand beside their twin, the same function in elementary ops.

relu has slope 0 at 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyvit.engine import random
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


def gelu_twin(F: Any, x: Any, approximate: str = "none") -> Any:
    """x · Φ(x)."""
    return x * _gelu_gate(F, x, approximate)


@primitive(twin=gelu_twin)
def gelu(xp, x, approximate="none"):
    """x · Φ(x), with Φ the normal distribution (Hendrycks & Gimpel 2016).

    `approximate`: "none" computes Φ by erf, "tanh" by ½(1 + tanh √(2/π)(x + 0.044715x³)), "quick" by σ(1.702x).
    """
    gate = _gelu_gate(xp, x, approximate)
    return x * gate, gate


@gelu.gradient
def _gelu_rule(xp, gy, x, approximate, residue):
    """∂L/∂x = ∂L/∂y · (Φ(x) + x · Φ′(x)); Φ(x), the costly part, is kept from the forward."""
    slope = _gelu_gate_slope(xp, x, residue, approximate)
    slope *= x
    slope += residue
    slope *= gy
    return (slope,)


@primitive
def softmax(xp, x, axis=-1):
    """exp x / Σ exp x along an axis."""
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    e /= xp.sum(e, axis=axis, keepdims=True)
    return e


# ∂L/∂x = y · (∂L/∂y − Σ ∂L/∂y · y), the Jacobian diag(y) − y yᵀ multiplied out
softmax.gradients(x=lambda F, gy, y, axis: y * (gy - F.sum(gy * y, axis=axis, keepdims=True)))


@primitive
def log_softmax(xp, x, axis=-1):
    """x − log Σ exp x along an axis."""
    x = x - xp.max(x, axis=axis, keepdims=True)
    return x - xp.log(xp.sum(xp.exp(x), axis=axis, keepdims=True))


log_softmax.gradients(x=lambda F, gy, y, axis: gy - F.exp(y) * F.sum(gy, axis=axis, keepdims=True))

# -------------------------------------------------------------------------------------------------------------- linear


def _rows(F: Any, x: Any) -> Any:
    """All leading axes as one: the samples and tokens that share a weight."""
    return F.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def linear_twin(F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """X · Wᵀ + b, the tutorial's W · x + b for a row x."""
    y = F.matmul(x, F.swapaxes(weight, 0, 1))
    return y if bias is None else y + bias


@primitive
def linear(xp, x, weight, bias=None):
    """X · Wᵀ + b: (…, in), weight (out, in), bias (out) → (…, out).

    Source: the tutorial's Patch Embedding, E = W_e · flatten(I) + b_e, on rows instead of columns.
    """
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"linear: x of shape {x.shape} does not fit a weight of shape {weight.shape} (out, in)")
    y = xp.matmul(_rows(xp, x), weight.T)
    if bias is not None:
        y = xp.add(y, bias, out=y) if bias.dtype == y.dtype else y + bias
    return xp.reshape(y, (*x.shape[:-1], weight.shape[0]))


linear.gradients(
    x=lambda F, gy, weight, x_shape: F.reshape(F.matmul(_rows(F, gy), weight), x_shape),  # ∂L/∂x = Wᵀ · ∂L/∂y
    weight=lambda F, gy, x: F.matmul(F.swapaxes(_rows(F, gy), 0, 1), _rows(F, x)),  # ∂L/∂W = Σₙ ∂L/∂yₙ · xₙᵀ
    bias=lambda F, gy: gy,  # ∂L/∂b = Σₙ ∂L/∂yₙ, the sum over what b was broadcast over
)

# ---------------------------------------------------------------------------------------------------------- layer norm


def layer_norm_twin(F: Any, x: Any, weight: Any, bias: Any, eps: float = 1e-6) -> Any:
    """(x − mean) / √(var + eps) · weight + bias over the last axis."""
    wide = x.astype(_at_least_single(x.dtype))
    centred = wide - F.mean(wide, axis=-1, keepdims=True)
    normed = centred / F.sqrt(F.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * weight + bias


def _at_least_single(dtype: Any) -> Any:
    """The dtype to square in: float16 ends at 65504."""
    return np.promote_types(dtype, np.float32)


@primitive(twin=layer_norm_twin)
def layer_norm(xp, x, weight, bias, eps=1e-6):
    """(x − mean) / √(var + eps) · weight + bias over the last axis: (…, D), weight and bias (D) → (…, D).

    Source: Ba, Kiros & Hinton 2016. The tutorial leaves it out; the ViT paper does not.
    """
    if not x.shape[-1:] == weight.shape == bias.shape:
        raise ValueError(
            f"layer_norm: x {x.shape}, weight {weight.shape} and bias {bias.shape} differ in the last axis"
        )
    wide = x.astype(_at_least_single(x.dtype), copy=False)
    mean = xp.mean(wide, axis=-1, keepdims=True)
    normed = wide - mean
    scale = 1 / xp.sqrt(xp.mean(normed * normed, axis=-1, keepdims=True) + eps)
    normed *= scale
    return normed.astype(x.dtype, copy=False) * weight + bias, (mean, scale)


@layer_norm.gradient
def _layer_norm_rule(xp, gy, x, weight, residue):
    """With n = (x − mean)·s and g = ∂L/∂n: ∂L/∂x = s · (g − mean g − n · mean(g·n))."""
    mean, scale = residue
    normed = (x - mean) * scale
    g = gy * weight
    gx = g - xp.mean(g, axis=-1, keepdims=True) - normed * xp.mean(g * normed, axis=-1, keepdims=True)
    return scale * gx, gy * normed, gy


# ----------------------------------------------------------------------------------------------------------- attention


def attention_twin(F: Any, q: Any, k: Any, v: Any, scale: float | None = None) -> Any:
    """softmax(Q · Kᵀ · scale) · V."""
    return F.matmul(attention_weights(F, q, k, scale), v)


def attention_weights(F: Any, q: Any, k: Any, scale: float | None = None) -> Any:
    """A = softmax(Q · Kᵀ / √d_k): (…, N, d_k), (…, M, d_k) → (…, N, M)."""
    return F.softmax(F.matmul(q * _scale(q, scale), F.swapaxes(k, -1, -2)), axis=-1)


def _scale(q: Any, scale: float | None) -> float:
    return float(q.shape[-1] ** -0.5) if scale is None else scale


@primitive(twin=attention_twin)
def scaled_dot_product_attention(xp, q, k, v, scale=None):
    """O = softmax(Q · Kᵀ · scale) · V: (…, N, d_k), (…, M, d_k), (…, M, d_v) → (…, N, d_v); scale is 1/√d_k if None.

    Source: the tutorial's Multi-Head Self-Attention, A and O; Vaswani et al. 2017.
    """
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape} and v {v.shape} differ in d_k or in the number of keys: "
            "they must be (…, N, d_k), (…, M, d_k) and (…, M, d_v)"
        )
    a = xp.matmul(q * _scale(q, scale), xp.swapaxes(k, -1, -2))  # scaled first, so that float16 does not overflow
    a -= xp.max(a, axis=-1, keepdims=True)
    a = xp.exp(a, out=a)
    a /= xp.sum(a, axis=-1, keepdims=True)
    return xp.matmul(a, v), a


@scaled_dot_product_attention.gradient
def _attention_rule(xp, gy, q, k, v, scale, residue):
    """With S = Q · Kᵀ · scale and A = softmax(S): ∂L/∂S = A · (∂L/∂A − Σ ∂L/∂A · A)."""
    a = residue
    gv = xp.matmul(xp.swapaxes(a, -1, -2), gy)  # ∂L/∂V = Aᵀ · ∂L/∂O
    gs = xp.matmul(gy, xp.swapaxes(v, -1, -2))  # ∂L/∂A = ∂L/∂O · Vᵀ
    gs -= xp.sum(gs * a, axis=-1, keepdims=True)
    gs *= a
    gs *= _scale(q, scale)
    return xp.matmul(gs, k), xp.matmul(xp.swapaxes(gs, -1, -2), q), gv


# ---------------------------------------------------------------------------------------------------------------- loss


def cross_entropy_twin(F: Any, logits: Any, target: Any) -> Any:
    """−Σ target · log softmax(logits), one number a row."""
    log_p = F.log_softmax(logits, axis=-1)
    return -F.sum(target * F.where(_impossible(F, target, log_p), 0, log_p), axis=-1)


def _impossible(F: Any, target: Any, log_p: Any) -> Any:
    """Classes of probability 0 that are no target: 0 · log 0 is 0 here, not NaN."""
    return (target == 0) & ~F.isfinite(log_p)


@primitive(twin=cross_entropy_twin)
def _cross_entropy(xp, logits, target):
    log_p = logits - xp.max(logits, axis=-1, keepdims=True)
    log_p -= xp.log(xp.sum(xp.exp(log_p), axis=-1, keepdims=True))
    return -xp.sum(target * xp.where(_impossible(xp, target, log_p), 0, log_p), axis=-1), log_p


@_cross_entropy.gradient
def _cross_entropy_rule(xp, gy, target, residue):
    """∂L/∂logits = p · Σ target − target, which is p − y for a target that sums to 1; ∂L/∂target = −log p."""
    gy = gy[..., None]
    return gy * (xp.exp(residue) * xp.sum(target, axis=-1, keepdims=True) - target), -gy * residue


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
    return x * _survivors(x, x.shape, p, rng) if p else x


def drop_path(x: Any, p: float = 0.1, rng: np.random.Generator | None = None) -> Any:
    """Zero whole samples (rows of axis 0) with probability p and scale the others by 1/(1 − p): stochastic depth.

    Source: Huang et al. 2016; Larsson et al. 2017.
    """
    return x * _survivors(x, (x.shape[0],) + (1,) * (x.ndim - 1), p, rng) if p else x


def _survivors(x: Any, shape: tuple[int, ...], p: float, rng: np.random.Generator | None) -> Any:
    """1/(1 − p) where something survives, else 0; drawn on the host, so that every device drops the same."""
    kept = (rng or random.generator()).random(shape, dtype=np.float32) >= probability(p)
    data = plain(x)
    return namespace_of(data).asarray(kept.astype(data.dtype) / data.dtype.type(1 - p))


def probability(p: float) -> float:
    """Return p if it is a probability that something is dropped: in [0, 1).

    Raises:
        ValueError: it is not.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: the probability {p} is not in [0, 1)")
    return p
