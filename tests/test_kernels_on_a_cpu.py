"""The GPU's kernels without a GPU: their sources run as fibers on a CPU, launched by the code that launches them there.

CuPy is the stand-in, cuBLAS's products are NumPy's, and everything else is the kernels' own: indices, strides, grids,
barriers, shuffles, and the layouts of the tensor cores. The tests are those of tests/test_gpu.py, on the same cases.
What only a GPU can tell is how fast they are, and what happens to those that do not wait for one another.
"""

import ctypes
import functools

import cuda_on_a_cpu
import numpy as np
import pytest
import strict_cupy
import test_gpu
from test_without_a_gpu import stand_in  # noqa: F401 -- a fixture

from tinyvit.engine import kernels
from tinyvit.engine.kernels import gpu

pytest.importorskip("ml_dtypes", reason="bfloat16 on the host needs ml_dtypes")
pytestmark = pytest.mark.skipif(not cuda_on_a_cpu.available(), reason="needs g++")


def product(a, b, out, bias=None, tf32=False):
    """In the place of cublas.product."""
    found = a._array.astype(np.float32) @ b._array.astype(np.float32)
    out._array[...] = found if bias is None else found + bias._array.astype(np.float32)


def products(a, b, out, n, m, k, scale=1.0, tf32=False):
    """In the place of cublas.products: the matrices are where the addresses say."""
    places = zip(*(batch.addresses._array for batch in (a, b, out)), strict=True)
    for left, right, result in places:
        found = _matrix(left, a, n, k) @ _matrix(right, b, k, m) * np.float32(scale)
        _at(result, out, n, m)[...] = found


def _matrix(address, batch, rows, columns):
    matrix = _at(address, batch, *((columns, rows) if batch.transposed else (rows, columns)))
    return (matrix.T if batch.transposed else matrix).astype(np.float32)


def _at(address, batch, rows, columns):
    dtype = np.dtype(batch.dtype)
    room = (ctypes.c_char * (((rows - 1) * batch.step + columns) * dtype.itemsize)).from_address(int(address))
    return np.ndarray((rows, columns), dtype, room, strides=(batch.step * dtype.itemsize, dtype.itemsize))


@pytest.fixture(autouse=True)
def emulated(stand_in, monkeypatch):  # noqa: F811
    """The kernels, on the stand-in."""
    device = functools.partial(dict, attributes={"MultiProcessorCount": 2})
    monkeypatch.setattr(strict_cupy.cupy, "RawModule", cuda_on_a_cpu.RawModule, raising=False)
    monkeypatch.setattr(strict_cupy.cuda, "Device", lambda: type("Device", (), device()), raising=False)
    monkeypatch.setattr(gpu, "product", product)
    monkeypatch.setattr(gpu, "products", products)
    monkeypatch.setitem(kernels._found, "gpu", gpu.KERNELS)
    _forget()
    yield
    _forget()


def _forget():
    for cached in (gpu._module, gpu._function, gpu._attention, gpu._multiprocessors, gpu.chance_of_step):
        cached.cache_clear()


CASES = [
    pytest.param(name, precision, marks=[pytest.mark.slow] * (name.startswith("attention") and precision != "fp32"))
    for name, (_, arguments) in test_gpu.CASES.items()
    for precision in test_gpu.PRECISIONS
    if arguments[0].size < 200_000 and precision != "tf32"  # a fiber is slow, and NumPy knows no tf32
]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_kernel_gives_its_twins_values_and_gradients(name, precision):
    test_gpu.test_a_kernel_gives_its_twins_values_and_gradients(name, precision)


OTHERS = [
    test_gpu.test_a_class_that_cannot_be_costs_nothing_unless_it_is_the_target,
    test_gpu.test_float64_and_views_are_left_to_the_array_code,
    test_gpu.test_a_view_that_begins_anywhere_is_read_right,
    test_gpu.test_one_step_of_the_optimizer_is_that_of_the_array_code,
    test_gpu.test_dropout_by_a_counter_keeps_its_share_and_takes_another_choice_each_time,
]


@pytest.mark.parametrize("test", OTHERS, ids=lambda test: test.__name__.removeprefix("test_"))
def test_what_was_written_for_a_gpu_holds_too(test):
    test()
