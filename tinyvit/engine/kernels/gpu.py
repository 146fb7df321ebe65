"""The GPU's kernels: matrix products by cuBLAS, everything else in the CUDA of `kernels.cu`, compiled when first used.

They take float32 and, where `tv.precision` says so, compute and keep 16-bit numbers; sums and statistics are float32.
Nothing here waits for the GPU, and all of it can be recorded into a CUDA graph.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.engine.backend import namespace_on
from tinyvit.engine.kernels import Kernel
from tinyvit.engine.kernels.cublas import Batch, product, products
from tinyvit.engine.mixed_precision import current, half

Gradients = tuple[Any, ...]
Saved = dict[str, Any]
Residue = tuple[Any, ...]  # what a kernel keeps beside what its op's rules have named

SOURCE = Path(__file__).with_name("kernels.cu")
OPTIONS = ("-std=c++17",)
NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}  # of dtypes in CUDA
HALVES = ("float16", "bfloat16")
_TEMPLATES = {  # how many of its types vary
    "gelu": 1,
    "gelu_backward": 1,
    "layer_norm": 2,
    "layer_norm_backward": 2,
    "sum_rows": 1,
    "softmax": 1,
    "softmax_backward": 1,
}
FUNCTIONS = [
    f"{name}<{', '.join(types)}>"
    for name, count in _TEMPLATES.items()
    for types in ([(a,) for a in NAMES.values()] if count == 1 else [(a, b) for a in NAMES.values() for b in NAMES.values()])
]
BLOCK = 256  # threads
WAVES = 16  # blocks of a pass over memory, for each multiprocessor
ALIGNED = 8  # numbers; a row of scores is padded to it, so that its halves lie on 16 bytes
STRETCH = 512  # rows that a block sums


# ------------------------------------------------------------------------------------------------------------ launching


@functools.cache
def _module() -> Any:
    cupy = namespace_on("gpu").module
    return cupy.RawModule(code=SOURCE.read_text(), options=OPTIONS, name_expressions=FUNCTIONS)


@functools.cache
def _function(name: str, *dtypes: str) -> Any:
    types = ", ".join(NAMES[dtype] for dtype in dtypes)
    return _module().get_function(f"{name}<{types}>" if types else name)


@functools.cache
def _multiprocessors() -> int:
    return int(namespace_on("gpu").module.cuda.Device().attributes["MultiProcessorCount"])


def _passes(count: int) -> tuple[tuple[int], tuple[int]]:
    """Grid and block of a pass over so many numbers."""
    return (max(1, min(-(-count // BLOCK // 4), WAVES * _multiprocessors())),), (BLOCK,)


def _row_block(width: int) -> int:
    """Threads for a row: a few numbers each."""
    return min(BLOCK, max(32, -(-width // 4 // 32) * 32))


def _empty(shape: Any, dtype: Any) -> Any:
    return namespace_on("gpu").empty(shape, dtype)


def _suit(*arrays: Any) -> bool:
    """Whether the kernels take these: float32 or 16-bit, C-contiguous, not empty, and not a single number."""
    return all(
        getattr(a, "dtype", np.dtype(object)).name in NAMES and a.ndim and a.size and a.flags.c_contiguous
        for a in arrays
    )


def _computed_in(x: Any) -> str:
    """The dtype in which an op keeps its result: what `precision` says, or x's own."""
    return half() or x.dtype.name


def _rows(x: Any) -> Any:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _contiguous(x: Any) -> Any:
    return namespace_on("gpu").ascontiguousarray(x)


# -------------------------------------------------------------------------------------------------------------- linear


def _linear(x: Any, weight: Any, bias: Any) -> tuple[Any, Residue] | None:
    arrays = (x, weight) if bias is None else (x, weight, bias)
    if not _suit(*arrays) or x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    dtype, tf32 = _computed_in(x), current() == "tf32"
    rows, w = _rows(x).astype(dtype, copy=False), weight.astype(dtype, copy=False)
    y = _empty((rows.shape[0], w.shape[0]), dtype)
    product(rows, w.T, y, bias=None if bias is None else bias.astype(dtype, copy=False), tf32=tf32)
    return y.reshape(*x.shape[:-1], w.shape[0]), (rows, w, tf32)


def _linear_backward(gy: Any, needed: set[int], saved: Saved, x: Any, w: Any, tf32: bool) -> Gradients:
    gy = _rows(_contiguous(gy))
    gx = gweight = gbias = None
    if 0 in needed:
        gx = _empty(x.shape, x.dtype)
        product(gy, w, gx, tf32=tf32)
        gx = gx.reshape(saved["x_shape"])
    if 1 in needed:
        gweight = _empty(w.shape, np.float32)
        product(gy.T, x, gweight, tf32=tf32)
    if 2 in needed:
        gbias = sum_rows(gy)
    return gx, gweight, gbias


def sum_rows(x: Any) -> Any:
    """Σ over the rows of (rows, width), in float32: each block sums a stretch, then one block the stretches."""
    while True:
        rows, width = x.shape
        stretches = -(-rows // STRETCH)
        out = _empty((stretches, width), np.float32)
        grid, block = (-(-width // 32), stretches), (32, 32)
        _function("sum_rows", x.dtype.name)(grid, block, (x, out, np.int64(rows), np.int32(width), np.int64(STRETCH)))
        if stretches == 1:
            return out[0]
        x = out


# ---------------------------------------------------------------------------------------------------------------- gelu


def _gelu(x: Any, approximate: str) -> tuple[Any, Residue] | None:
    if approximate != "none" or not _suit(x):
        return None
    y = _empty(x.shape, x.dtype)
    _function("gelu", x.dtype.name)(*_passes(x.size), (x, y, np.int64(x.size)))
    return y, ()


def _gelu_backward(gy: Any, needed: set[int], saved: Saved) -> Gradients:
    x, gy = saved["x"], _contiguous(gy)
    gx = _empty(x.shape, x.dtype)
    _function("gelu_backward", x.dtype.name)(*_passes(x.size), (x, gy, gx, np.int64(x.size)))
    return (gx,)


# ---------------------------------------------------------------------------------------------------------- layer norm


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Residue] | None:
    if not _suit(x, weight, bias) or not weight.dtype == bias.dtype == np.float32:
        return None
    if not x.shape[-1:] == weight.shape == bias.shape:
        return None
    y, width = _empty(x.shape, _computed_in(x)), x.shape[-1]
    mean, rstd = _empty(x.shape[:-1], np.float32), _empty(x.shape[:-1], np.float32)
    arguments = (x, weight, bias, np.float32(eps), y, mean, rstd, np.int32(width))
    _function("layer_norm", x.dtype.name, y.dtype.name)((x.size // width,), (_row_block(width),), arguments)
    return y, (mean, rstd)


def _layer_norm_backward(gy: Any, needed: set[int], saved: Saved, mean: Any, rstd: Any) -> Gradients:
    x, weight, gy = saved["x"], saved["weight"], _contiguous(gy)
    width, rows = x.shape[-1], x.size // x.shape[-1]
    blocks = min(rows, 8 * _multiprocessors())
    gx, partial = _empty(x.shape, x.dtype), _empty((blocks, 2 * width), np.float32)
    arguments = (gy, x, weight, mean, rstd, gx, partial, np.int64(rows), np.int32(width))
    kernel = _function("layer_norm_backward", x.dtype.name, gy.dtype.name)
    kernel((blocks,), (_row_block(width),), arguments, shared_mem=8 * width)
    gradients = sum_rows(partial)
    return gx, gradients[:width], gradients[width:]


# ----------------------------------------------------------------------------------------------------------- attention


def _multi_head(qkv: Any, num_heads: int) -> tuple[Any, Residue] | None:
    if not _suit(qkv) or qkv.ndim != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        return None
    B, N, d, step = *qkv.shape[:2], qkv.shape[2] // (3 * num_heads), -(-qkv.shape[1] // ALIGNED) * ALIGNED
    tf32 = current() == "tf32"
    y = _empty((B, N, num_heads * d), qkv.dtype)
    scores, a = _empty((B, num_heads, N, step), np.float32), _empty((B, num_heads, N, step), qkv.dtype)
    q, k, v, s, weights, out = _heads(B, num_heads, *_packed(qkv, num_heads), scores, a, y)
    products(q, k.T, s, N, N, d, scale=d**-0.5, tf32=tf32)
    grid, block = (B * num_heads * N,), (_row_block(N),)
    _function("softmax", qkv.dtype.name)(grid, block, (scores, a, np.int32(N), np.int32(step)))
    products(weights, v, out, N, d, N, tf32=tf32)
    return y, (a, tf32)


def _multi_head_backward(gy: Any, needed: set[int], saved: Saved, a: Any, tf32: bool) -> Gradients:
    qkv, h, gy = saved["qkv"], saved["num_heads"], _contiguous(gy)
    B, N, step, d = *qkv.shape[:2], a.shape[-1], qkv.shape[2] // (3 * h)
    gqkv, ga, gs = _empty(qkv.shape, qkv.dtype), _empty(a.shape, np.float32), _empty(a.shape, a.dtype)
    q, k, v, weights, out, into_weights = _heads(B, h, *_packed(qkv, h), a, gy, ga)
    gq, gk, gv, into_scores = _heads(B, h, *_packed(gqkv, h), gs)
    products(weights.T, out, gv, N, d, N, tf32=tf32)  # ∂L/∂V = Aᵀ · ∂L/∂O
    products(out, v.T, into_weights, N, N, d, tf32=tf32)  # ∂L/∂A = ∂L/∂O · Vᵀ
    grid, block = (B * h * N,), (_row_block(N),)
    arguments = (a, ga, gs, np.float32(d**-0.5), np.int32(N), np.int32(step))
    _function("softmax_backward", a.dtype.name)(grid, block, arguments)
    products(into_scores, k, gq, N, d, N, tf32=tf32)
    products(into_scores.T, q, gk, N, d, N, tf32=tf32)
    return (gqkv,)


def _packed(qkv: Any, num_heads: int) -> Any:
    """Views of Q, K and V as they lie side by side: (B, N, 3·D) → 3 × (B, h, N, d_k)."""
    B, N, width = qkv.shape
    return qkv.reshape(B, N, 3, num_heads, width // (3 * num_heads)).transpose(2, 0, 3, 1, 4)


def _heads(images: int, heads: int, *arrays: Any) -> list[Batch]:
    """Where each head's matrix lies: of views (B, h, N, …), and of arrays (B, N, h · d_k) that hold heads side by side."""
    views = [a if a.ndim == 4 else a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2) for a in arrays]
    out = _empty((len(views), images * heads), np.int64)
    places = np.zeros(24, np.int64)
    for i, view in enumerate(views):
        places[i::8] = view.data.ptr, view.strides[0], view.strides[1]
    grid, block = (-(-images * heads // BLOCK), len(views)), (BLOCK,)
    _function("addresses")(grid, block, (places.view(_PLACES), out, np.int32(images), np.int32(heads)))
    return [
        Batch(where, view.dtype.name, view.strides[2] // view.itemsize)
        for where, view in zip(out, views, strict=True)
    ]


_PLACES = np.dtype((np.void, 3 * 8 * 8))  # a struct of three arrays of eight, passed by value

# ----------------------------------------------------------------------------------------------------- flat buffers


def _adamw(p: Any, g: Any, m: Any, v: Any, *numbers: float) -> bool | None:
    if not _suit(p, g, m, v) or not p.dtype == g.dtype == m.dtype == v.dtype == np.float32:
        return None
    at = _empty(8, np.float32)
    by_value = np.zeros(8, np.float32)
    by_value[: len(numbers)] = numbers
    _function("keep")((1,), (8,), (by_value.view(_NUMBERS), at))
    _function("adamw")(*_passes(p.size), (p, g, m, v, at, np.int64(p.size)))
    return True


_NUMBERS = np.dtype((np.void, 8 * 4))


def _square_sum(x: Any) -> Any:
    if not _suit(x) or x.dtype != np.float32:
        return None
    grid, block = _passes(x.size)
    partial = _empty(grid, np.float64)
    _function("square_sum")(grid, block, (x, partial, np.int64(x.size)))
    return partial.sum()


def _ema(shadow: Any, p: Any, share: float) -> bool | None:
    if not _suit(shadow, p) or not shadow.dtype == p.dtype == np.float32:
        return None
    _function("ema")(*_passes(p.size), (shadow, p, np.float32(share), np.int64(p.size)))
    return True


KERNELS = {
    "adamw": Kernel(_adamw),
    "ema": Kernel(_ema),
    "square_sum": Kernel(_square_sum),
    "linear": Kernel(_linear, _linear_backward),
    "gelu": Kernel(_gelu, _gelu_backward),
    "layer_norm": Kernel(_layer_norm, _layer_norm_backward),
    "multi_head_attention": Kernel(_multi_head, _multi_head_backward),
}


def ready() -> dict[str, Kernel]:
    """Return the kernels, after a product that shows that cuBLAS is there.

    Raises:
        CublasError: it is not.
    """
    xp = namespace_on("gpu")
    a, out = xp.eye(ALIGNED, dtype=np.float32), _empty((ALIGNED, ALIGNED), np.float32)
    product(a, a, out)
    return KERNELS
