"""What a time needs beside it to mean something."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

from threadpoolctl import threadpool_info

from tinyvit.engine.backend import namespace_on

PACKAGES = {"NumPy": ("numpy",), "Numba": ("numba",), "CuPy": ("cupy-cuda12x", "cupy-cuda13x", "cupy")}


def machine(device: str) -> dict[str, str]:
    """Return what this process computes on ("cpu" or "gpu"), and with which versions."""
    facts = {"processor": f"{_processor()}, {_cores()} cores"}
    if device == "gpu":
        cuda = namespace_on("gpu").module.cuda
        facts["GPU"] = cuda.runtime.getDeviceProperties(cuda.Device().id)["name"].decode()
    facts["Python"] = f"{platform.python_version()} on {platform.system()}"
    for name, packages in PACKAGES.items():
        found = next(filter(None, map(_version, packages)), None)
        if found or name == "Numba":
            facts[name] = found or "not installed: NumPy's own loops"
    blas = {f"{b['internal_api']} {b['version'] or ''}".strip() for b in threadpool_info() if b["user_api"] == "blas"}
    facts["BLAS"] = ", ".join(sorted(blas)) or "unknown"
    return facts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return name[1] if name else platform.machine()


def peak_memory() -> int | None:
    """Return the most memory that this process has taken so far, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")  # on Linux, where `ru_maxrss` is inherited from whoever started the process
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
