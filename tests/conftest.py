"""What every test shares: a fixed seed, clean global state afterwards, and the devices that op tests run on."""

import os

# Before NumPy is imported, here and in the processes that tests start: the products in the tests are small, and BLAS
# threads that wait for one another spin, which slows a busy machine tenfold.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

import tinyvit as tv
from tinyvit.engine import backend, kernels, tape

hypothesis.settings.register_profile("tinyvit", deadline=None, max_examples=40)
hypothesis.settings.load_profile("tinyvit")


@pytest.fixture(autouse=True)
def global_state():
    """Start from a fixed seed, and fail a test that leaves no_grad or another default backend behind."""
    before = tape.mode.recording, tape.mode.twins_in, backend.default_namespace(), kernels._wanted
    tv.seed(0)
    yield
    left = tape.mode.recording, tape.mode.twins_in, backend.default_namespace(), kernels._wanted
    # so that the next test does not fail too
    tape.mode.recording, tape.mode.twins_in, backend._default, kernels._wanted = before
    assert left == before, "the test left no_grad()/enable_grad(), unfused(), use_backend() or switched() switched"


@pytest.fixture(scope="session", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """Where a test computes; `pytest -m gpu` runs the same tests with CuPy."""
    if request.param == "gpu" and not tv.gpu_available():
        pytest.skip("CuPy or a GPU is missing")
    return request.param
