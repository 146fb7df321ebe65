"""CuPy's `RawModule` on a CPU: the kernels' own sources, compiled by g++ with CUDA's language from cuda_on_a_cpu.hpp.

What the tensor cores do stands in the sources as assembler; each such line is replaced by a call that does the same.
"""

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import strict_cupy

HERE = Path(__file__).parent
ASSEMBLER = {
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": "cpu::multiply<bfloat16>(c, a.at, b0, b1);",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": "cpu::multiply<float16>(c, a.at, b0, b1);",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16": "cpu::load(r, row, false);",
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16": "cpu::load(r, row, true);",
    "ex2.approx.ftz.f32": "y = exp2f(x);",
    "cp.async.cg.shared.global": "cpu::copy(to, from, there);",
    "cp.async.wait_all": "",
}
STATEMENT = re.compile(r"asm(?: volatile)?\(\"([\w.]+).*?\);", re.DOTALL)


def available():
    return bool(shutil.which("g++"))


def _translated(source):
    source = re.sub(r"#include <cuda_\w+.h>", "", source)
    return STATEMENT.sub(lambda found: ASSEMBLER[found[1]], source)


def _built(source, functions):
    """A library with a launcher for each kernel, built once a session."""
    launchers = "\n".join(
        f'extern "C" void launch_{i}(const unsigned *grid, const unsigned *block, void **arguments)'
        f" {{ cpu::launch<&{name}>(&{name}, grid, block, arguments); }}"
        for i, name in enumerate(functions)
    )
    text = f'#include "cuda_on_a_cpu.hpp"\n{_translated(source)}\n{launchers}\n'
    key = hashlib.sha256((text + (HERE / "cuda_on_a_cpu.hpp").read_text()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"tinyvit-cuda-on-a-cpu-{key}"
    library = folder / "kernels.so"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        (folder / "kernels.cpp").write_text(text)
        options = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", f"-I{HERE}"]
        command = ["g++", *options, "kernels.cpp", "-o", "part.so"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:4000]
        (folder / "part.so").rename(library)
    return ctypes.CDLL(str(library))


class RawModule:
    """cupy.RawModule, as far as the kernels use it."""

    def __init__(self, code, options=(), name_expressions=()):
        self.names = [*name_expressions, *re.findall(r'extern "C" __global__ void (\w+)\(', code)]
        self.kernels = _built(code, self.names)

    def get_function(self, name):
        launch = self.kernels[f"launch_{self.names.index(name)}"]

        def kernel(grid, block, arguments):
            sizes = [(ctypes.c_uint * 2)(*[*shape, 1][:2]) for shape in (grid, block)]
            held = [_passed(argument) for argument in arguments]
            places = (ctypes.c_void_p * len(held))(*[value.ctypes.data for value in held])
            strict_cupy.perform(lambda: launch(*sizes, places) or held)

        return kernel


def _passed(argument):
    """The bytes of a parameter: an array's address, or a NumPy scalar as it is."""
    if hasattr(argument, "_array"):
        return np.array([argument.data.ptr], np.uint64)
    assert isinstance(argument, (np.generic, np.ndarray)), f"a kernel's argument has no size: {argument!r}"
    return np.array([argument])
