"""Matrix products by cuBLAS, called directly: in 16 bits with sums in float32, with a bias on the way, into a graph.

CuPy's own products copy what is not in C order, know no bias, have no 16-bit form for three axes, and refuse to run
while a CUDA graph is recorded. So the two functions here go to the library that CuPy has loaded: `product` for two axes
by cuBLASLt, whose plan for a shape is made once and kept, and `products` for many small ones by their addresses.

Source: cuBLAS's manual (cublasLtMatmul, cublasGemmBatchedEx); the numbers are those of cublasLt.h and library_types.h.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any, NamedTuple

from tinyvit.engine.backend import namespace_on

WORKSPACE = 32 << 20  # bytes; what cuBLAS asks for on Hopper
_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType_t
_COMPUTE_32F, _COMPUTE_TF32 = 68, 77  # cublasComputeType_t
_TRANS_A, _TRANS_B, _EPILOGUE, _BIAS_POINTER, _BIAS_TYPE = 3, 4, 7, 8, 26  # cublasLtMatmulDescAttributes_t
_DEFAULT, _BIAS = 1, 4  # cublasLtEpilogue_t
_MAX_WORKSPACE, _ALIGNMENTS = 1, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t; of A, B, C and D
ALIGNMENT = 16  # bytes; where an operand must begin
_GEMM_DEFAULT = -1  # cublasGemmAlgo_t

_pointer = ctypes.c_void_p


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm for a shape."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


class CublasError(RuntimeError):
    """A call of cuBLAS that did not succeed."""


class Operand(NamedTuple):
    """A matrix of two axes as cuBLAS sees it: rows that lie `step` numbers apart, perhaps to be read transposed."""

    pointer: int
    dtype: str
    rows: int
    columns: int
    step: int
    transposed: bool

    @classmethod
    def of(cls, array: Any) -> Operand:
        """Describe an array whose rows, or whose columns, lie side by side.

        Raises:
            ValueError: neither do.
        """
        (rows, columns), size = array.shape, array.itemsize
        down, across = array.strides
        if across == size or columns == 1:
            return cls(array.data.ptr, array.dtype.name, rows, columns, max(down // size, columns), False)
        if down == size or rows == 1:
            return cls(array.data.ptr, array.dtype.name, columns, rows, max(across // size, rows), True)
        raise ValueError(f"neither the rows nor the columns of {array.shape} with strides {array.strides} lie together")


class _Library:
    """The libraries, each with a handle and a workspace, which threads share."""

    def __init__(self) -> None:
        self.cupy = namespace_on("gpu").module
        major = self.cupy.cuda.runtime.runtimeGetVersion() // 1000
        self.lt = _load("cublasLt", major)
        self.v2 = _load("cublas", major)
        self.workspace = self.cupy.cuda.memory.alloc(WORKSPACE)
        self.workspace_v2 = self.cupy.cuda.memory.alloc(WORKSPACE)
        self.handle_lt, self.handle = _pointer(), _pointer()
        _check(self.lt.cublasLtCreate(ctypes.byref(self.handle_lt)))
        _check(self.v2.cublasCreate_v2(ctypes.byref(self.handle)))
        self.lock = threading.Lock()

    @property
    def stream(self) -> int:
        return self.cupy.cuda.get_current_stream().ptr


def _load(name: str, major: int) -> Any:
    """The library of the CUDA that CuPy uses; it is loaded already, or can be."""
    error: OSError | None = None
    for version in (f".so.{major}", ".so"):
        try:
            return ctypes.CDLL(f"lib{name}{version}")
        except OSError as missing:
            error = missing
    raise CublasError(f"lib{name} of CUDA {major} is not to be found: {error}")


@functools.cache
def _library() -> _Library:
    return _Library()


def _check(status: int) -> None:
    if status:
        raise CublasError(f"cuBLAS answered with status {status}")


# --------------------------------------------------------------------------------------------------------- two axes


def product(a: Any, b: Any, out: Any, bias: Any = None, tf32: bool = False) -> None:
    """Write a · b to `out`: (n, k) · (k, m) → (n, m), all on the GPU, sums in float32.

    Args:
        a, b: of one dtype, beginning on 16 bytes; views whose rows or columns lie side by side are read as they are.
        out: C-contiguous; of the operands' dtype, or float32.
        bias: (m), of out's dtype, added to every row.
        tf32: let float32 be rounded to 10 bits of mantissa on the way into the tensor cores.

    Raises:
        CublasError: cuBLAS has no way to compute this.
    """
    left, right = Operand.of(a), Operand.of(b)
    plan = _plan(left[1:], right[1:], out.shape, out.dtype.name, _DEFAULT if bias is None else _BIAS, tf32)
    lib = _library()
    with lib.lock:  # the plan holds the address of the bias while it is launched
        if bias is not None:
            _set(lib, plan.description, _BIAS_POINTER, ctypes.c_uint64(bias.data.ptr))
        _check(
            lib.lt.cublasLtMatmul(
                lib.handle_lt,
                plan.description,
                _ONE,
                _pointer(right.pointer),
                plan.right,
                _pointer(left.pointer),
                plan.left,
                _ZERO,
                _pointer(out.data.ptr),
                plan.out,
                _pointer(out.data.ptr),
                plan.out,
                ctypes.byref(plan.algorithm),
                _pointer(lib.workspace.ptr),
                ctypes.c_size_t(WORKSPACE),
                _pointer(lib.stream),
            )
        )


_ONE, _ZERO = ctypes.byref(ctypes.c_float(1)), ctypes.byref(ctypes.c_float(0))


class _Plan(NamedTuple):
    description: Any
    left: Any
    right: Any
    out: Any
    algorithm: Any


@functools.lru_cache(maxsize=1024)
def _plan(left: tuple[Any, ...], right: tuple[Any, ...], shape: Any, dtype: str, epilogue: int, tf32: bool) -> _Plan:
    """How cuBLAS computes a shape. It thinks in columns: our rows are its columns, and a · b its bᵀ · aᵀ."""
    lib = _library()
    description = _pointer()
    compute = _COMPUTE_TF32 if tf32 and left[0] == "float32" else _COMPUTE_32F
    _check(lib.lt.cublasLtMatmulDescCreate(ctypes.byref(description), compute, _TYPES["float32"]))
    _set(lib, description, _TRANS_A, ctypes.c_int(right[-1]))
    _set(lib, description, _TRANS_B, ctypes.c_int(left[-1]))
    _set(lib, description, _EPILOGUE, ctypes.c_int(epilogue))
    if epilogue != _DEFAULT:
        _set(lib, description, _BIAS_TYPE, ctypes.c_int(_TYPES[dtype]))
        _set(lib, description, _BIAS_POINTER, ctypes.c_uint64(lib.workspace.ptr))  # some address, to plan with
    on_left, on_right = _layout(lib, *left[:4]), _layout(lib, *right[:4])
    on_out = _layout(lib, dtype, shape[0], shape[1], shape[1])
    preference = _pointer()
    _check(lib.lt.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
    _prefer(lib, preference, _MAX_WORKSPACE, ctypes.c_uint64(WORKSPACE))
    for attribute in _ALIGNMENTS:
        _prefer(lib, preference, attribute, ctypes.c_uint32(ALIGNMENT))
    found, count = _Heuristic(), ctypes.c_int()
    status = lib.lt.cublasLtMatmulAlgoGetHeuristic(
        lib.handle_lt, description, on_right, on_left, on_out, on_out, preference, 1, ctypes.byref(found),
        ctypes.byref(count),
    )  # fmt: skip
    lib.lt.cublasLtMatmulPreferenceDestroy(preference)
    if status or not count.value:
        raise CublasError(f"cuBLAS knows no way for {left} · {right} → {dtype} with epilogue {epilogue} ({status})")
    return _Plan(description, on_left, on_right, on_out, found)


def _layout(lib: _Library, dtype: str, rows: int, columns: int, step: int) -> Any:
    layout = _pointer()
    sizes = ctypes.c_uint64(columns), ctypes.c_uint64(rows), ctypes.c_int64(step)
    _check(lib.lt.cublasLtMatrixLayoutCreate(ctypes.byref(layout), _TYPES[dtype], *sizes))
    return layout


def _set(lib: _Library, description: Any, attribute: int, value: Any) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(value))
    _check(lib.lt.cublasLtMatmulDescSetAttribute(description, attribute, ctypes.byref(value), size))


def _prefer(lib: _Library, preference: Any, attribute: int, value: Any) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(value))
    _check(lib.lt.cublasLtMatmulPreferenceSetAttribute(preference, attribute, ctypes.byref(value), size))


# ------------------------------------------------------------------------------------------------------- many at once


class Batch(NamedTuple):
    """Many matrices of one shape, each of which lies somewhere: `addresses` is an array of pointers on the GPU."""

    addresses: Any
    dtype: str
    step: int
    transposed: bool = False

    @property
    def T(self) -> Batch:  # noqa: N802 -- NumPy's name
        """The same matrices, to be read transposed."""
        return self._replace(transposed=not self.transposed)


def products(a: Batch, b: Batch, out: Batch, n: int, m: int, k: int, scale: float = 1.0, tf32: bool = False) -> None:
    """Write a · b · scale to `out` for every matrix of the batches: (n, k) · (k, m) → (n, m)."""
    lib = _library()
    compute = _COMPUTE_TF32 if tf32 and a.dtype == "float32" else _COMPUTE_32F
    alpha, beta = ctypes.c_float(scale), ctypes.c_float(0)
    with lib.lock:
        _check(lib.v2.cublasSetStream_v2(lib.handle, _pointer(lib.stream)))
        # after the stream, which gives the handle its own workspace back
        _check(lib.v2.cublasSetWorkspace_v2(lib.handle, _pointer(lib.workspace_v2.ptr), ctypes.c_size_t(WORKSPACE)))
        _check(
            lib.v2.cublasGemmBatchedEx(
                lib.handle,
                int(b.transposed),
                int(a.transposed),
                m,
                n,
                k,
                ctypes.byref(alpha),
                _pointer(b.addresses.data.ptr),
                _TYPES[b.dtype],
                b.step,
                _pointer(a.addresses.data.ptr),
                _TYPES[a.dtype],
                a.step,
                ctypes.byref(beta),
                _pointer(out.addresses.data.ptr),
                _TYPES[out.dtype],
                out.step,
                out.addresses.size,
                compute,
                _GEMM_DEFAULT,
            )
        )
