"""The CPU's kernels: matrix products by BLAS, everything else in compiled loops, each array passed over once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyvit.engine.kernels import Kernel, loops

Gradients = tuple[Any, ...]
Saved = dict[str, Any]
Residue = tuple[Any, ...]  # what a kernel keeps beside what its op's rules have named


def _suit(*arrays: Any) -> bool:
    """Whether the loops take these: float32 or float64, one dtype, C-contiguous, and not a single number."""
    dtype = getattr(arrays[0], "dtype", None)
    return dtype in (np.float32, np.float64) and all(
        isinstance(a, np.ndarray) and a.dtype == dtype and a.ndim and a.flags.c_contiguous for a in arrays
    )


def _rows(x: Any) -> Any:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


# -------------------------------------------------------------------------------------------------------------- linear


def _linear(x: Any, weight: Any, bias: Any) -> tuple[Any, Residue] | None:
    arrays = (x, weight) if bias is None else (x, weight, bias)
    if not _suit(*arrays) or x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    y = np.matmul(_rows(x), weight.T)
    if bias is not None:
        loops.add_bias(y, bias)
    return y.reshape(*x.shape[:-1], weight.shape[0]), ()


def _linear_backward(gy: Any, needed: set[int], saved: Saved) -> Gradients:
    gy = _rows(np.ascontiguousarray(gy))
    gx = gweight = gbias = None
    if 0 in needed:
        gx = np.matmul(gy, saved["weight"]).reshape(saved["x_shape"])
    if 1 in needed:
        gweight = np.matmul(gy.T, _rows(saved["x"]))
    if 2 in needed:
        gbias = np.empty(gy.shape[1], gy.dtype)
        loops.sum_rows(gy, gbias)
    return gx, gweight, gbias


# ---------------------------------------------------------------------------------------------------------------- gelu


def _gelu(x: Any, approximate: str) -> tuple[Any, Residue] | None:
    if approximate != "none" or not _suit(x):
        return None
    y = np.empty_like(x)
    loops.gelu(x.reshape(-1), y.reshape(-1))
    return y, ()


def _gelu_backward(gy: Any, needed: set[int], saved: Saved) -> Gradients:
    x = saved["x"]
    gx = np.empty_like(x)
    loops.gelu_backward(x.reshape(-1), np.ascontiguousarray(gy).reshape(-1), gx.reshape(-1))
    return (gx,)


# ---------------------------------------------------------------------------------------------------------- layer norm


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Residue] | None:
    if not _suit(x, weight, bias) or not x.shape[-1:] == weight.shape == bias.shape:
        return None
    y, mean, rstd = np.empty_like(x), np.empty(x.shape[:-1], x.dtype), np.empty(x.shape[:-1], x.dtype)
    loops.layer_norm(_rows(x), weight, bias, float(eps), _rows(y), mean.reshape(-1), rstd.reshape(-1))
    return y, (mean, rstd)


def _layer_norm_backward(gy: Any, needed: set[int], saved: Saved, mean: Any, rstd: Any) -> Gradients:
    return _norm_gradients(None, gy, saved["x"], saved["weight"], mean, rstd)


def _add_layer_norm(x: Any, branch: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Residue] | None:
    fits = _suit(x, branch, weight, bias) and x.shape == branch.shape and x.shape[-1:] == weight.shape == bias.shape
    if not fits:
        return None
    s, y = np.empty_like(x), np.empty_like(x)
    mean, rstd = np.empty(x.shape[:-1], x.dtype), np.empty(x.shape[:-1], x.dtype)
    out = _rows(s), _rows(y), mean.reshape(-1), rstd.reshape(-1)
    loops.add_layer_norm(_rows(x), _rows(branch), weight, bias, float(eps), *out)
    return (s, y), (mean, rstd)


def _add_layer_norm_backward(gy: Any, needed: set[int], saved: Saved, mean: Any, rstd: Any) -> Gradients:
    gs, gnorm = gy
    gnorm = np.zeros_like(saved["y0"]) if gnorm is None else gnorm
    gs, gweight, gbias = _norm_gradients(gs, gnorm, saved["y0"], saved["weight"], mean, rstd)
    return gs, gs, gweight, gbias


def _norm_gradients(gs: Any, gy: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> Gradients:
    """The gradients of x, weight and bias, where gs comes to x beside its norm."""
    gx, gweight, gbias = np.empty_like(x), np.empty_like(weight), np.empty_like(weight)
    gs = None if gs is None else _rows(np.ascontiguousarray(gs))
    rows = _rows(np.ascontiguousarray(gy)), _rows(x)
    loops.layer_norm_backward(gs, *rows, weight, mean.reshape(-1), rstd.reshape(-1), _rows(gx), gweight, gbias)
    return gx, gweight, gbias


# ----------------------------------------------------------------------------------------------------------- attention


def _attend(q: Any, k: Any, v: Any, scale: float, out: Any) -> Any:
    """Write softmax(Q · Kᵀ · scale) · V to `out` and return the softmax."""
    a = np.matmul(q, k.swapaxes(-1, -2))
    loops.softmax(_rows(a), scale)
    np.matmul(a, v, out=out)
    return a


def _attend_backward(gy: Any, q: Any, k: Any, v: Any, a: Any, scale: float, out: tuple[Any, Any, Any]) -> None:
    """Write the gradients of Q, K and V to `out`."""
    gq, gk, gv = out
    np.matmul(a.swapaxes(-1, -2), gy, out=gv)
    gs = np.matmul(gy, v.swapaxes(-1, -2))
    loops.softmax_backward(_rows(a), _rows(gs), scale)
    np.matmul(gs, k, out=gq)
    np.matmul(gs.swapaxes(-1, -2), q, out=gk)


def _attention(q: Any, k: Any, v: Any, scale: float | None) -> tuple[Any, Residue] | None:
    if not _suit(q, k, v) or q.ndim < 2 or not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        return None
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2] or not k.shape[-2]:
        return None
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    y = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    return y, (_attend(q, k, v, scale, y), scale)


def _attention_backward(gy: Any, needed: set[int], saved: Saved, a: Any, scale: float) -> Gradients:
    q, k, v = saved["q"], saved["k"], saved["v"]
    gradients = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    _attend_backward(gy, q, k, v, a, scale, gradients)
    return gradients


def _multi_head(qkv: Any, num_heads: int) -> tuple[Any, Residue] | None:
    if not _suit(qkv) or qkv.ndim != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads) or not qkv.size:
        return None
    q, k, v = _heads(qkv, num_heads)
    y = np.empty((*qkv.shape[:2], qkv.shape[2] // 3), qkv.dtype)
    a = _attend(q, k, v, q.shape[-1] ** -0.5, _side_by_side(y, num_heads))
    return y, (a,)


def _multi_head_backward(gy: Any, needed: set[int], saved: Saved, a: Any) -> Gradients:
    qkv, num_heads = saved["qkv"], saved["num_heads"]
    q, k, v = _heads(qkv, num_heads)
    gqkv = np.empty_like(qkv)
    _attend_backward(_side_by_side(gy, num_heads), q, k, v, a, q.shape[-1] ** -0.5, _heads(gqkv, num_heads))
    return (gqkv,)


def _heads(qkv: Any, num_heads: int) -> Any:
    """Views of Q, K and V as they lie side by side: (B, N, 3·D) → 3 × (B, h, N, d_k)."""
    B, N, width = qkv.shape
    return qkv.reshape(B, N, 3, num_heads, width // (3 * num_heads)).transpose(2, 0, 3, 1, 4)


def _side_by_side(y: Any, num_heads: int) -> Any:
    """A view of each head's result: (B, N, D) → (B, h, N, d_k)."""
    B, N, D = y.shape
    return y.reshape(B, N, num_heads, D // num_heads).swapaxes(1, 2)


# ----------------------------------------------------------------------------------------------------- flat buffers


def _adamw(p: Any, g: Any, m: Any, v: Any, *numbers: float) -> bool | None:
    if not _suit(p, g, m, v) or not p.shape == g.shape == m.shape == v.shape:
        return None
    loops.adamw(*(a.reshape(-1) for a in (p, g, m, v)), *map(float, numbers))
    return True


def _square_sum(x: Any) -> Any:
    return np.float64(loops.square_sum(x.reshape(-1))) if _suit(x) else None


def _ema(shadow: Any, p: Any, share: float) -> bool | None:
    if not _suit(shadow, p) or shadow.shape != p.shape:
        return None
    loops.ema(shadow.reshape(-1), p.reshape(-1), share)
    return True


KERNELS = {
    "adamw": Kernel(_adamw),
    "ema": Kernel(_ema),
    "square_sum": Kernel(_square_sum),
    "linear": Kernel(_linear, _linear_backward),
    "gelu": Kernel(_gelu, _gelu_backward),
    "layer_norm": Kernel(_layer_norm, _layer_norm_backward),
    "add_layer_norm": Kernel(_add_layer_norm, _add_layer_norm_backward),
    "scaled_dot_product_attention": Kernel(_attention, _attention_backward),
    "multi_head_attention": Kernel(_multi_head, _multi_head_backward),
}
