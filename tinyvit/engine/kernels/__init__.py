"""How an op is made fast: kernels that compute a fused op, and its gradients, in one pass over memory.

A kernel has the name of its op and stands in for it on arrays that suit it; on others it gives None, and the op's own
array code runs. Everything works without: the CPU's kernels need Numba (the extra `fast`), and are loaded when a
fused op is first computed. What Numba compiles, it keeps on disk for the next process.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tinyvit.engine.backend import gpu_available


class Kernel(NamedTuple):
    """How one op is computed on one device.

    Attributes:
        forward: f(*arguments) gives (result, residue), or None where the arguments do not suit it; the result of an op
            that has several is a tuple.
        backward: f(gy, needed, saved, *residue) gives a gradient for each argument whose position is in `needed`; saved
            is {name: value} of what the op's rules have named. Of several results gy is a list, with None for a result
            that was not used. None for what is no op (an optimizer's update).
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None


_wanted = os.environ.get("TINYVIT_KERNELS", "auto") != "off"
_found: dict[str, dict[str, Kernel]] = {}  # by device, then by the op's name


def available() -> bool:
    """Whether the CPU's kernels can be used: Numba is installed."""
    return importlib.util.find_spec("numba") is not None


def in_use() -> bool:
    """Whether kernels compute the fused ops on a CPU: they are available, and nobody switched them off."""
    return _wanted and available()


def to_be_compiled() -> bool:
    """Whether the CPU's loops will be used and were never compiled on this machine, or not since they were changed."""
    if not in_use():
        return False
    from tinyvit.engine.kernels import loops

    changed = Path(loops.__file__).stat().st_mtime
    kept = Path(loops.add_bias.stats.cache_path).glob("loops.*.nbi")
    return not any(file.stat().st_mtime >= changed for file in kept)


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Use kernels, or do not, inside the block, in all threads; TINYVIT_KERNELS=off does so for a whole process.

    >>> with switched(False):
    ...     in_use()
    False
    """
    global _wanted
    previous, _wanted = _wanted, on
    try:
        yield
    finally:
        _wanted = previous


def find(name: str, device: str) -> Kernel | None:
    """Return the kernel of an op on a device, if there is one."""
    return table(device).get(name) if _wanted else None


def table(device: str) -> dict[str, Kernel]:
    """Return a device's kernels by name, loaded when first asked for."""
    if device not in _found:
        _found[device] = _load(device)
    return _found[device]


def _load(device: str) -> dict[str, Kernel]:
    try:
        if device == "gpu" and gpu_available():
            from tinyvit.engine.kernels import gpu

            return gpu.ready()
        if device == "cpu" and available():
            from tinyvit.engine.kernels import cpu

            return cpu.KERNELS
    except (ImportError, RuntimeError) as error:  # for instance a Numba for another NumPy, or no cuBLAS
        warnings.warn(f"tinyvit computes without kernels: {error}", stacklevel=2)
    return {}
