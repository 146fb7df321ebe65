"""The CUDA sources compile for the GPUs they are for, on a machine without one: NVRTC is a library of its own."""

import ctypes
import importlib.util
import re
from pathlib import Path

import pytest

from tinyvit.engine.kernels import gpu


def toolkit():
    """The folder of CUDA's wheels, with its compiler and its headers; None where they are not installed."""
    found = importlib.util.find_spec("nvidia")
    for place in found.submodule_search_locations if found else []:
        for root in Path(place).glob("cu1*"):
            if list(root.glob("lib/libnvrtc.so.*")) and (root / "include" / "cuda_bf16.h").exists():
                return root
    return None


needs_nvrtc = pytest.mark.skipif(not toolkit(), reason="needs nvidia-cuda-nvrtc and nvidia-cuda-runtime (Linux)")


def compiler():
    library = ctypes.CDLL(str(next(toolkit().glob("lib/libnvrtc.so.*"))))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def compiled(source, functions, architecture):
    """(what the compiler said, the names that it gave the functions)"""
    nvrtc, program = compiler(), ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    for name in functions:
        assert nvrtc.nvrtcAddNameExpression(program, name.encode()) == 0
    include = toolkit() / "include"
    options = [*gpu.OPTIONS, f"--gpu-architecture={architecture}", f"-I{include}", f"-I{include / 'cccl'}"]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    lowered = []
    for name in functions:
        found = ctypes.c_char_p()
        assert nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(found)) == 0, name
        lowered.append(found.value.decode())
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode(), lowered


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_without_a_warning(architecture):
    log, names = compiled((gpu.SOURCES / "kernels.cu").read_text(), gpu.FUNCTIONS, architecture)
    assert not log.strip()
    assert len(set(names)) == len(gpu.FUNCTIONS)


@needs_nvrtc
@pytest.mark.parametrize("architecture", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])
@pytest.mark.parametrize("dtype", gpu.HALVES)
@pytest.mark.parametrize("d", [pytest.param(d, marks=pytest.mark.slow) if d != 64 else d for d in gpu.HEAD_WIDTHS])
def test_attention_compiles_for_every_width_of_a_head(d, dtype, architecture):
    functions = list(gpu.attention_functions(dtype, d).values())
    log, _ = compiled((gpu.SOURCES / "attention.cu").read_text(), functions, architecture)
    assert not log.strip()


@needs_nvrtc
def test_a_mistake_in_a_kernel_is_found():
    with pytest.raises(AssertionError, match="undefined"):
        compiled('extern "C" __global__ void f(float *x) { x[0] = undefined_name; }', ["f"], "sm_90")


def test_every_kernel_that_python_asks_for_is_in_the_sources():
    code = (gpu.SOURCES / "gpu.py").read_text()
    defined = "".join((gpu.SOURCES / name).read_text() for name in ("kernels.cu", "attention.cu"))
    asked = set(re.findall(r'_(?:function|with_numbers)\("(\w+)"', code))
    assert asked >= {"gelu", "adamw", "sum_rows"}
    for name in asked:
        assert f"void {name}(" in defined, name
