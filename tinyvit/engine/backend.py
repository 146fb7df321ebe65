"""The switch between NumPy and CuPy: the only file in the project that imports cupy.

A rule, a kernel or an optimizer never asks where it runs. It gets a `Namespace`, the array library with the few
functions it lacks added, and calls NumPy's names on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tinyvit.engine import special

Array = Any  # a numpy.ndarray or a cupy.ndarray


class BackendError(RuntimeError):
    """A backend that is not there, or arrays that live on different devices."""


class Namespace:
    """NumPy's names on one device, plus `erf`, `softmax`, `scatter_add` and `to_device`, which NumPy lacks.

    >>> NUMPY.exp(np.zeros(2)), NUMPY.device
    (array([1., 1.]), 'cpu')
    """

    def __init__(self, module: ModuleType, device: str, erf: Callable[[Array], Array]):
        self.module = module
        self.device = device
        self.erf = erf
        self.scatter_add_at = module.add.at

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        function = getattr(self.module, name)
        setattr(self, name, function)  # found once; the next look-up is an ordinary attribute
        return function

    def softmax(self, x: Array, axis: int = -1) -> Array:
        """Return exp x / Σ exp x along an axis; the maximum is taken out first, so that nothing overflows."""
        e = self.exp(x - self.max(x, axis=axis, keepdims=True))
        e /= self.sum(e, axis=axis, keepdims=True)
        return e

    def scatter_add(self, values: Array, index: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
        """Zeros of `shape` with `values` added at `index`; where an index occurs twice, both values count."""
        if self.device == "gpu" and values.dtype.name in ("int8", "int16", "uint8"):  # which CuPy does not add
            return self.scatter_add(values.astype(np.int32), index, shape).astype(values.dtype)
        total = self.module.zeros(shape, dtype=values.dtype)
        if _may_repeat(index):
            if self.device == "cpu":  # NumPy's add.at (2.4) reads past the end of values that it is left to broadcast
                values = np.broadcast_to(values, np.broadcast_to(False, shape)[index].shape)
            self.scatter_add_at(total, index, values)
        else:
            total[index] = values
        return total

    def to_device(self, array: Array, device: str) -> Array:
        """Return the array on `device`."""
        return to_device(array, device)


def _may_repeat(index: tuple[Any, ...]) -> bool:
    """Integer arrays can name an element twice; slices, numbers and masks cannot."""
    return any(getattr(part, "ndim", 0) and part.dtype.kind in "iu" for part in index)


NUMPY = Namespace(np, "cpu", special.erf)
_cupy: Namespace | None = None  # made when a GPU is first asked for, so that a CPU user never imports cupy


def _load_cupy() -> Namespace:
    """Import CuPy and make sure that a GPU answers: `import cupy` alone succeeds without a driver."""
    global _cupy
    if _cupy is None:
        try:
            import cupy
            import cupyx.scipy.special
        except ImportError as error:
            raise BackendError(
                "the GPU backend needs CuPy, which is not installed: pip install 'tinyvit[cuda13]' (or cuda12)"
            ) from error
        if not cupy.is_available():
            raise BackendError("CuPy is installed but finds no usable NVIDIA GPU or driver; use the device 'cpu'")

        def erf(x: Array) -> Array:
            """CuPy's erf gives float64 for float16."""
            return (
                cupyx.scipy.special.erf(x.astype(np.float32)).astype(x.dtype)
                if x.dtype == np.float16
                else (cupyx.scipy.special.erf(x))
            )

        _cupy = Namespace(cupy, "gpu", erf)
    return _cupy


def gpu_available() -> bool:
    """Whether CuPy is installed and a GPU answers."""
    try:
        _load_cupy()
    except BackendError:
        return False
    return True


def namespace_of(*values: Any) -> Namespace:
    """Return the namespace in which these arrays live; numbers live anywhere.

    Raises:
        BackendError: arrays of both libraries are mixed.
    """
    if _cupy is None and ("cupy" not in sys.modules or not gpu_available()):
        return NUMPY
    assert _cupy is not None
    arrays = (np.ndarray, _cupy.module.ndarray)
    on_gpu = {isinstance(v, _cupy.module.ndarray) for v in values if isinstance(v, arrays)}
    if len(on_gpu) == 2:
        raise BackendError("arrays on 'cpu' and on 'gpu' meet in one operation; move one with .to('gpu') or .to('cpu')")
    return _cupy if True in on_gpu else NUMPY


def namespace_on(device: str) -> Namespace:
    """Return the namespace of "cpu", of "gpu", or of "auto" (the GPU where there is one).

    Raises:
        BackendError: the device is unknown or not there.
    """
    if device == "auto":
        device = "gpu" if gpu_available() else "cpu"
    if device == "cpu":
        return NUMPY
    if device == "gpu":
        return _load_cupy()
    raise BackendError(f"unknown device {device!r}: use 'cpu', 'gpu' or 'auto'")


def to_device(array: Array, device: str) -> Array:
    """Copy an array to "cpu" or "gpu"; an array that is there already is returned as it is."""
    target = namespace_on(device)
    source = namespace_of(array)
    if target is source:
        return array
    return source.module.asnumpy(array) if target is NUMPY else target.asarray(array)


def empty_pinned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a NumPy array in memory that a GPU copies from by itself, so that nobody waits."""
    _load_cupy()
    import cupyx

    pinned: np.ndarray = cupyx.empty_pinned(shape, dtype)
    return pinned


# --------------------------------------------------------------------------------------------------------------------
# Where new tensors go

_DEVICES = {"numpy": "cpu", "cupy": "gpu"}
_default: Namespace | None = None


def default_namespace() -> Namespace:
    """Return the namespace of new tensors: `use_backend`'s, else TINYVIT_BACKEND's, else NumPy."""
    if _default is None:
        try:
            use_backend(os.environ.get("TINYVIT_BACKEND", "numpy"))
        except BackendError as error:
            raise BackendError(f"the environment variable TINYVIT_BACKEND: {error}") from error
    assert _default is not None
    return _default


class use_backend:  # noqa: N801 -- a verb to call, and a context manager to leave again
    """Make "numpy" or "cupy" the backend of new tensors; in a `with` block, until its end.

    Raises:
        BackendError: the name is unknown, or CuPy or a GPU is missing. The backend stays as it was.

    >>> with use_backend("numpy"):
    ...     default_namespace().device
    'cpu'
    """

    def __init__(self, name: str):
        global _default
        if name not in _DEVICES:
            raise BackendError(f"unknown backend {name!r}: use 'numpy' or 'cupy'")
        namespace = namespace_on(_DEVICES[name])
        self.previous, _default = _default, namespace

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        global _default
        _default = self.previous
