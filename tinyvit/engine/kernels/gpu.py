"""The GPU's kernels: matrix products by cuBLAS, everything else in the CUDA of `kernels.cu`, compiled when first used.

They take float32 and, where `tv.precision` says so, compute and keep 16-bit numbers; sums and statistics are float32.
Nothing here waits for the GPU, and all of it can be recorded into a CUDA graph.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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

SOURCES = Path(__file__).parent
OPTIONS = ("-std=c++20",)
NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}  # of dtypes in CUDA
HALVES = ("float16", "bfloat16")
_TEMPLATES = {  # how many of a kernel's types vary, and how many numbers it may read at once
    "astype": (2, ()),
    "gelu": (1, ()),
    "gelu_backward": (1, ()),
    "layer_norm": (2, (1, 4)),
    "layer_norm_backward": (2, (1, 4)),
    "add_layer_norm": (2, (1, 4)),
    "add_layer_norm_backward": (2, (1, 4)),
    "norm_columns": (2, (1, 4)),
    "sum_rows": (1, (1, 8)),
    "softmax": (1, ()),
    "survivors": (1, ()),
    "softmax_backward": (1, ()),
}
FUNCTIONS = [
    f"{name}<{', '.join([*types, *lengths])}>"
    for name, (count, per) in _TEMPLATES.items()
    for types in itertools.product(NAMES.values(), repeat=count)
    if not {*HALVES} <= {*types}
    for lengths in ([[str(n)] for n in per] or [[]])
]
BLOCK = 256  # threads
WAVES = 16  # blocks of a pass over memory, for each multiprocessor
ALIGNED = 8  # numbers; a row of scores is padded to it, so that its halves lie on 16 bytes
STRETCH = 512  # rows that a block sums
TILE, THREADS = 64, 128  # rows that a block of attention.cu takes, 16 a warp
HEAD_WIDTHS = (16, 32, 48, 64, 80)  # for which its registers and shared memory suffice


# ------------------------------------------------------------------------------------------------------------ launching


@functools.cache
def _module(source: str, *functions: str) -> Any:
    code = (SOURCES / source).read_text(encoding="utf-8")
    return namespace_on("gpu").module.RawModule(code=code, options=OPTIONS, name_expressions=functions)


@functools.cache
def _function(name: str, *dtypes: str, per: int = 0) -> Any:
    types = ", ".join([NAMES[dtype] for dtype in dtypes] + [str(per)] * bool(per))
    return _module("kernels.cu", *FUNCTIONS).get_function(f"{name}<{types}>" if types else name)


@functools.cache
def _attention(name: str, dtype: str, d: int) -> Any:
    """A kernel of attention.cu for one width of a head; each width is a module, compiled when it is met."""
    functions = attention_functions(dtype, d)
    return _module("attention.cu", *functions.values()).get_function(functions[name])


def attention_functions(dtype: str, d: int) -> dict[str, str]:
    """Return the kernels of attention.cu for one width of a head: {name: how CUDA calls it}."""
    names = ("attention", "row_products", "attention_queries", "attention_keys")
    return {name: f"{name}<{NAMES[dtype]}, {d}>" for name in names}


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


def astype(x: Any, dtype: Any) -> Any:
    """Return x in another of the kernels' dtypes, or itself; ready to be read."""
    x = _ready(x)
    if x.dtype == dtype:
        return x
    y = _empty(x.shape, dtype)
    _function("astype", x.dtype.name, y.dtype.name)(*_passes(x.size), (x, y, np.int64(x.size)))
    return y


def _astype(x: Any, dtype: Any) -> Any:
    return astype(x, dtype) if _suit(x) and np.dtype(dtype).name in NAMES else None


def _computed_in(x: Any) -> str:
    """The dtype in which an op keeps its result: what `precision` says, or x's own."""
    return half() or x.dtype.name


def _rows(x: Any) -> Any:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _ready(x: Any) -> Any:
    """The array as kernels and cuBLAS may read it: in C order, and beginning on 16 bytes (a view may not)."""
    x = namespace_on("gpu").ascontiguousarray(x)
    return x if x.data.ptr % 16 == 0 else x.copy()


# -------------------------------------------------------------------------------------------------------------- linear


def _linear(x: Any, weight: Any, bias: Any) -> tuple[Any, Residue] | None:
    arrays = (x, weight) if bias is None else (x, weight, bias)
    if not _suit(*arrays) or x.shape[-1:] != weight.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    dtype, tf32 = _computed_in(x), current() == "tf32"
    rows, w = astype(_rows(x), dtype), astype(weight, dtype)
    y = _empty((rows.shape[0], w.shape[0]), dtype)
    product(rows, w.T, y, bias=None if bias is None else astype(bias, dtype), tf32=tf32)
    return y.reshape(*x.shape[:-1], w.shape[0]), (rows, w, tf32)


def _linear_backward(gy: Any, needed: set[int], saved: Saved, x: Any, w: Any, tf32: bool) -> Gradients:
    gy = _rows(_ready(gy))
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
    """Σ over the rows of (rows, width), in float32: first of stretches of rows, then of their sums."""
    while True:
        rows, width = x.shape
        per = 8 if width % 8 == 0 else 1
        out = _empty((-(-rows // STRETCH), width), np.float32)
        grid = -(-width // (32 * per)), len(out)
        arguments = (x, out, np.int64(rows), np.int32(width), np.int64(STRETCH))
        _function("sum_rows", x.dtype.name, per=per)(grid, (32, 8), arguments)
        if len(out) == 1:
            return out[0]
        x = out


# ---------------------------------------------------------------------------------------------------------------- gelu


def _gelu(x: Any, approximate: str) -> tuple[Any, Residue] | None:
    if approximate != "none" or not _suit(x):
        return None
    x, y = _ready(x), _empty(x.shape, x.dtype)
    _function("gelu", x.dtype.name)(*_passes(x.size), (x, y, np.int64(x.size)))
    return y, ()


def _gelu_backward(gy: Any, needed: set[int], saved: Saved) -> Gradients:
    x, gy = _ready(saved["x"]), _ready(gy)
    gx = _empty(x.shape, x.dtype)
    _function("gelu_backward", x.dtype.name)(*_passes(x.size), (x, gy, gx, np.int64(x.size)))
    return (gx,)


# ------------------------------------------------------------------------------------------------------------- dropout


@functools.cache
def chance_of_step() -> Any:
    """The key of a step's dropout, one uint64 on the GPU; whoever repeats a graph writes another one there."""
    return namespace_on("gpu").zeros(1, np.uint64)


def _survivors(shape: tuple[int, ...], p: float, dtype: Any, key: int) -> Any:
    if np.dtype(dtype).name not in NAMES:
        return None
    out = _empty(shape, dtype)
    arguments = (out, np.float32(p), np.uint64(key), chance_of_step(), np.int64(out.size))
    _function("survivors", out.dtype.name)(*_passes(max(out.size, 1)), arguments)
    return out


# ---------------------------------------------------------------------------------------------------------- layer norm


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Residue] | None:
    if not _suit(x, weight, bias) or not weight.dtype == bias.dtype == np.float32:
        return None
    if not x.shape[-1:] == weight.shape == bias.shape:
        return None
    y, width = _empty(x.shape, _computed_in(x)), x.shape[-1]
    mean, rstd = _empty(x.shape[:-1], np.float32), _empty(x.shape[:-1], np.float32)
    given = _ready(x), _ready(weight), _ready(bias), np.float32(eps)
    arguments = (*given, y, mean, rstd, np.int64(mean.size), np.int32(width))
    _function("layer_norm", x.dtype.name, y.dtype.name, per=_by_fours(width))(*_warps(mean.size), arguments)
    return y, (mean, rstd)


def _layer_norm_backward(gy: Any, needed: set[int], saved: Saved, mean: Any, rstd: Any) -> Gradients:
    x, weight, gy = _ready(saved["x"]), _ready(saved["weight"]), _ready(gy)
    width, rows, gx = x.shape[-1], mean.size, None
    if 0 in needed:
        gx = _empty(x.shape, x.dtype)
        arguments = (gy, x, weight, mean, rstd, gx, np.int64(rows), np.int32(width))
        function = _function("layer_norm_backward", x.dtype.name, gy.dtype.name, per=_by_fours(width))
        function(*_warps(rows), arguments)
    return gx, *(_norm_columns(gy, x, mean, rstd) if needed & {1, 2} else (None, None))


def _norm_columns(gy: Any, x: Any, mean: Any, rstd: Any) -> Any:
    """The gradients of a norm's weight and bias, one after the other: (2, D)."""
    width, rows, per = x.shape[-1], mean.size, _by_fours(x.shape[-1])
    partial = _empty((-(-rows // STRETCH), 2 * width), np.float32)
    grid = -(-width // (32 * per)), len(partial)
    sizes = np.int64(rows), np.int32(width), np.int64(STRETCH)
    function = _function("norm_columns", x.dtype.name, gy.dtype.name, per=per)
    function(grid, (32, 8), (gy, x, mean, rstd, partial, *sizes))
    return sum_rows(partial).reshape(2, width)


def _add_layer_norm(x: Any, branch: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Residue] | None:
    if not _suit(x, branch, weight, bias) or not x.dtype == weight.dtype == bias.dtype == np.float32:
        return None
    halves = {branch.dtype.name, _computed_in(x)} - {"float32"}
    if x.shape != branch.shape or not x.shape[-1:] == weight.shape == bias.shape or len(halves) > 1:
        return None
    s, y, width = _empty(x.shape, x.dtype), _empty(x.shape, _computed_in(x)), x.shape[-1]
    mean, rstd = _empty(x.shape[:-1], np.float32), _empty(x.shape[:-1], np.float32)
    given = _ready(x), _ready(branch), _ready(weight), _ready(bias), np.float32(eps)
    arguments = (*given, s, y, mean, rstd, np.int64(mean.size), np.int32(width))
    _function("add_layer_norm", branch.dtype.name, y.dtype.name, per=_by_fours(width))(*_warps(mean.size), arguments)
    return (s, y), (mean, rstd, branch.dtype)


def _add_layer_norm_backward(gy: Any, needed: set[int], saved: Saved, mean: Any, rstd: Any, dtype: Any) -> Gradients:
    gs, gnorm = (None if g is None else _ready(g) for g in gy)
    if gnorm is None:
        nothing = namespace_on("gpu").zeros(saved["weight"].shape, np.float32)
        return gs, astype(gs, dtype), nothing, nothing
    s, weight, gx, gbranch = saved["y0"], _ready(saved["weight"]), None, None
    if needed & {0, 1}:
        apart = 1 in needed and dtype != np.float32  # else the gradient of x is that of the branch too
        gx = _empty(s.shape, np.float32) if 0 in needed or not apart else None
        gbranch = _empty(s.shape, dtype) if apart else None
        sizes, given = (np.int64(mean.size), np.int32(s.shape[-1])), (gnorm, s, weight, mean, rstd)
        arguments = (_or_null(gs), *given, _or_null(gx), _or_null(gbranch), *sizes)
        function = _function("add_layer_norm_backward", dtype.name, gnorm.dtype.name, per=_by_fours(s.shape[-1]))
        function(*_warps(mean.size), arguments)
        gbranch = gbranch if apart else gx
    return gx, gbranch, *(_norm_columns(gnorm, s, mean, rstd) if needed & {2, 3} else (None, None))


def _or_null(x: Any) -> Any:
    return np.uint64(0) if x is None else x


def _by_fours(width: int) -> int:
    return 4 if width % 4 == 0 else 1


def _warps(rows: int) -> tuple[tuple[int], tuple[int]]:
    """Grid and block of a warp a row."""
    return (-(-rows // (BLOCK // 32)),), (BLOCK,)


# ----------------------------------------------------------------------------------------------------------- attention


def _multi_head(qkv: Any, num_heads: int) -> tuple[Any, Residue] | None:
    if not _suit(qkv) or qkv.ndim != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        return None
    qkv, d = _ready(qkv), qkv.shape[-1] // (3 * num_heads)
    in_one_pass = qkv.dtype.name in HALVES and d in HEAD_WIDTHS
    return _in_one_pass(qkv, num_heads, d) if in_one_pass else _by_products(qkv, num_heads, d)


def _multi_head_backward(gy: Any, needed: set[int], saved: Saved, backward: Any, *kept: Any) -> Gradients:
    qkv, h = _ready(saved["qkv"]), saved["num_heads"]
    gqkv = _empty(qkv.shape, qkv.dtype)
    backward(_ready(gy), qkv, gqkv, h, qkv.shape[-1] // (3 * h), *kept)
    return (gqkv,)


def _in_one_pass(qkv: Any, h: int, d: int) -> tuple[Any, Residue]:
    """Attention whose scores never reach memory; what is kept is the log of each row's sum."""
    (B, N, _), dtype = qkv.shape, qkv.dtype
    y, logs = _empty((B, N, h * d), dtype), _empty((B, h, N), np.float32)
    sizes = np.int32(N), np.int32(h), np.float32(d**-0.5)
    _attention("attention", dtype.name, d)((-(-N // TILE) * B * h,), (THREADS,), (qkv, y, logs, *sizes))
    return y, (_in_one_pass_backward, y, logs)


def _in_one_pass_backward(gy: Any, qkv: Any, gqkv: Any, h: int, d: int, y: Any, logs: Any) -> None:
    (B, N, _), dtype = qkv.shape, qkv.dtype.name
    dots, rows = _empty(logs.shape, np.float32), B * N * h
    _attention("row_products", dtype, d)(*_warps(rows), (gy, y, dots, np.int32(N), np.int32(h), np.int64(rows)))
    arguments = (qkv, gy, logs, dots, gqkv, np.int32(N), np.int32(h), np.float32(d**-0.5))
    for side in ("attention_queries", "attention_keys"):
        _attention(side, dtype, d)((-(-N // TILE) * B * h,), (THREADS,), arguments)


def _by_products(qkv: Any, num_heads: int, d: int) -> tuple[Any, Residue]:
    """Attention as its formula says, with the scores of all heads in memory."""
    B, N, _ = qkv.shape
    step, tf32 = -(-N // ALIGNED) * ALIGNED, current() == "tf32"
    y = _empty((B, N, num_heads * d), qkv.dtype)
    scores, a = _empty((B, num_heads, N, step), np.float32), _empty((B, num_heads, N, step), qkv.dtype)
    q, k, v, s, weights, out = _heads(B, num_heads, *_packed(qkv, num_heads), scores, a, y)
    products(q, k.T, s, N, N, d, scale=d**-0.5, tf32=tf32)
    grid, block = (B * num_heads * N,), (_row_block(N),)
    _function("softmax", qkv.dtype.name)(grid, block, (scores, a, np.int32(N), np.int32(step)))
    products(weights, v, out, N, d, N, tf32=tf32)
    return y, (_by_products_backward, a, tf32)


def _by_products_backward(gy: Any, qkv: Any, gqkv: Any, h: int, d: int, a: Any, tf32: bool) -> None:
    (B, N, _), step = qkv.shape, a.shape[-1]
    ga, gs = _empty(a.shape, np.float32), _empty(a.shape, a.dtype)
    q, k, v, weights, out, into_weights = _heads(B, h, *_packed(qkv, h), a, gy, ga)
    gq, gk, gv, into_scores = _heads(B, h, *_packed(gqkv, h), gs)
    products(weights.T, out, gv, N, d, N, tf32=tf32)  # ∂L/∂V = Aᵀ · ∂L/∂O
    products(out, v.T, into_weights, N, N, d, tf32=tf32)  # ∂L/∂A = ∂L/∂O · Vᵀ
    grid, block = (B * h * N,), (_row_block(N),)
    arguments = (a, ga, gs, np.float32(d**-0.5), np.int32(N), np.int32(step))
    _function("softmax_backward", a.dtype.name)(grid, block, arguments)
    products(into_scores, k, gq, N, d, N, tf32=tf32)
    products(into_scores.T, q, gk, N, d, N, tf32=tf32)


def _packed(qkv: Any, num_heads: int) -> Any:
    """Views of Q, K and V as they lie side by side: (B, N, 3·D) → 3 × (B, h, N, d_k)."""
    B, N, width = qkv.shape
    return qkv.reshape(B, N, 3, num_heads, width // (3 * num_heads)).transpose(2, 0, 3, 1, 4)


def _heads(images: int, heads: int, *arrays: Any) -> list[Batch]:
    """Where each head's matrix lies: of views (B, h, N, …), and of arrays (B, N, h · d_k) with heads side by side."""
    views = [a if a.ndim == 4 else a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2) for a in arrays]
    out = _empty((len(views), images * heads), np.int64)
    places = np.zeros(24, np.int64)
    for i, view in enumerate(views):
        places[i::8] = view.data.ptr, view.strides[0], view.strides[1]
    grid, block = (-(-images * heads // BLOCK), len(views)), (BLOCK,)
    _function("addresses")(grid, block, (places.view(_PLACES), out, np.int32(images), np.int32(heads)))
    return [
        Batch(where, view.dtype.name, view.strides[2] // view.itemsize) for where, view in zip(out, views, strict=True)
    ]


_PLACES = np.dtype((np.void, 3 * 8 * 8))  # a struct of three arrays of eight, passed by value

# ------------------------------------------------------------------------------------------------------ cross-entropy


def _cross_entropy(logits: Any, target: Any) -> tuple[Any, Residue] | None:
    if not _suit(logits, target) or not logits.dtype == target.dtype == np.float32 or logits.shape != target.shape:
        return None
    losses, rows, classes = _empty(logits.shape[:-1], np.float32), logits.size // logits.shape[-1], logits.shape[-1]
    kept = _empty((rows, 3), np.float32)
    _function("cross_entropy")((rows,), (_row_block(classes),), (logits, target, losses, kept, np.int32(classes)))
    return losses, (kept,)


def _cross_entropy_backward(gy: Any, needed: set[int], saved: Saved, kept: Any) -> Gradients:
    logits, target, classes = saved["logits"], saved["target"], saved["logits"].shape[-1]
    glogits, gtarget = _empty(logits.shape, np.float32), _empty(logits.shape, np.float32) if 1 in needed else None
    given = _ready(gy), logits, target, kept, glogits, _or_null(gtarget), np.int32(classes)
    _function("cross_entropy_backward")((len(kept),), (_row_block(classes),), given)
    return glogits, gtarget


# ----------------------------------------------------------------------------------------------------- flat buffers


class StepNumbers:
    """The numbers of a step (a step size, say) that a graph's kernels read from memory, to be written anew for each.

    An update that is recorded asks for them in some order. Before each launch of the graph it is gone through again, on
    the host alone, and what it asks for then is written to the places that the kernels read.
    """

    def __init__(self) -> None:
        self.places: list[Any] = []
        self.first: list[tuple[float, ...]] = []
        self.turn = 0

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Give places to the kernels that are launched inside the block; `write` fills them when it is over."""
        with _while(_recorded, self):
            yield

    def write(self) -> None:
        """Write what was asked for while it was recorded."""
        for place, numbers in zip(self.places, self.first, strict=True):
            _write(place, numbers)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Write what is asked for inside the block, where nothing else is launched."""
        self.turn = 0
        with _while(_renewed, self):
            yield
        if self.turn != len(self.places):
            raise RuntimeError(f"an update of {len(self.places)} parts was recorded, and this one has {self.turn}")


_recorded: ContextVar[StepNumbers | None] = ContextVar("an update is recorded", default=None)
_renewed: ContextVar[StepNumbers | None] = ContextVar("a recorded update gets new numbers", default=None)


@contextmanager
def _while(variable: ContextVar[StepNumbers | None], numbers: StepNumbers) -> Iterator[None]:
    token = variable.set(numbers)
    try:
        yield
    finally:
        variable.reset(token)


def _write(place: Any, numbers: tuple[float, ...]) -> None:
    padded = np.zeros(8, np.float32)
    padded[: len(numbers)] = numbers
    _function("set_numbers")((1,), (8,), (padded.view(_NUMBERS), place))


def _with_numbers(name: str, arrays: tuple[Any, ...], numbers: tuple[float, ...]) -> None:
    """Launch a kernel on flat arrays, with numbers that it reads from memory."""
    if renewed := _renewed.get():
        _write(renewed.places[renewed.turn], numbers)
        renewed.turn += 1
        return
    place = _empty(8, np.float32)
    if recorded := _recorded.get():
        recorded.places.append(place)
        recorded.first.append(numbers)
    else:
        _write(place, numbers)
    count = arrays[0].size
    _function(name)(*_passes(count), (*arrays, place, np.int64(count)))


_NUMBERS = np.dtype((np.void, 8 * 4))  # a struct of eight floats, passed by value


def _adamw(p: Any, g: Any, m: Any, v: Any, *numbers: float) -> bool | None:
    if not _suit(p, g, m, v) or not p.dtype == g.dtype == m.dtype == v.dtype == np.float32:
        return None
    _with_numbers("adamw", (p, g, m, v), numbers)
    return True


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
    _with_numbers("ema", (shadow, p), (share,))
    return True


KERNELS = {
    "adamw": Kernel(_adamw),
    "astype": Kernel(_astype),
    "ema": Kernel(_ema),
    "square_sum": Kernel(_square_sum),
    "survivors": Kernel(_survivors),
    "cross_entropy": Kernel(_cross_entropy, _cross_entropy_backward),
    "linear": Kernel(_linear, _linear_backward),
    "gelu": Kernel(_gelu, _gelu_backward),
    "layer_norm": Kernel(_layer_norm, _layer_norm_backward),
    "add_layer_norm": Kernel(_add_layer_norm, _add_layer_norm_backward),
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
