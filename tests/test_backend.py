"""The switch between NumPy and CuPy: its errors, what it leaves behind, and what importing tinyvit does not import."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine import backend

without_gpu = pytest.mark.skipif(tv.gpu_available(), reason="a GPU is there")


def python(code, **environment):
    """Run code in a fresh interpreter; returns (exit status, standard output, standard error)."""
    environment = {k: v for k, v in os.environ.items() if k != "TINYVIT_BACKEND"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and len(text) < 160


def test_importing_tinyvit_imports_no_gpu_library_and_no_framework():
    code = """if True:
        import sys, tinyvit as tv
        (tv.tensor([1.0], requires_grad=True) * 2).sum().backward()
        print(sorted({"cupy", "cupyx", "torch", "jax", "tensorflow", "scipy", "matplotlib", "PIL"} & set(sys.modules)))
    """
    assert python(code) == (0, "[]", "")


@pytest.mark.parametrize("name", ["torch", "cpu", "", "NumPy"])
def test_an_unknown_backend_is_refused_and_nothing_changes(name):
    before = backend.default_namespace()
    with pytest.raises(tv.BackendError, match=f"unknown backend {name!r}: use 'numpy' or 'cupy'"):
        tv.use_backend(name)
    assert backend.default_namespace() is before


def test_a_backend_block_restores_what_was_there_also_after_an_exception(monkeypatch):
    other = backend.Namespace(np, "cpu", backend.NUMPY.erf)
    monkeypatch.setattr(backend, "_default", other)
    with tv.use_backend("numpy"), tv.use_backend("numpy"):
        assert backend.default_namespace() is backend.NUMPY
    assert backend.default_namespace() is other
    with pytest.raises(ZeroDivisionError), tv.use_backend("numpy"):
        1 / 0  # noqa: B018
    assert backend.default_namespace() is other


def test_use_backend_called_without_a_block_stays(monkeypatch):
    monkeypatch.setattr(backend, "_default", backend.Namespace(np, "cpu", backend.NUMPY.erf))
    tv.use_backend("numpy")
    assert backend.default_namespace() is backend.NUMPY


@pytest.mark.gpu
def test_the_cupy_backend_puts_new_tensors_on_the_gpu_until_its_block_ends():
    if not tv.gpu_available():
        pytest.skip("CuPy or a GPU is missing")
    with tv.use_backend("cupy"):
        x = tv.tensor([1.0, 2.0], requires_grad=True)
        assert (x.device, tv.tensor(3).device, tv.tensor(np.ones(2)).device) == ("gpu", "gpu", "cpu")
        (x * x).sum().backward()
        assert (x.grad.device, x.grad.tolist()) == ("gpu", [2.0, 4.0])
        assert "device=gpu" in repr(x)
        assert tv.tensor([1.0], device="cpu").device == "cpu"
    assert tv.tensor([1.0]).device == "cpu"


@pytest.mark.gpu
def test_numbers_of_every_kind_meet_arrays_on_the_gpu():
    if not tv.gpu_available():
        pytest.skip("CuPy or a GPU is missing")
    x = tv.tensor(np.array([1.0, 2.0], np.float32), device="gpu")
    for number in (2, 2.0, True, np.float32(2), np.float64(2), np.int64(2)):
        for y in (x * number, number * x):
            assert y.device == "gpu"
            np.testing.assert_array_equal(y.numpy(), x.numpy() * number, strict=True)


@without_gpu
def test_without_a_gpu_every_way_to_it_gives_one_sentence():
    x = tv.tensor([1.0], requires_grad=True)
    before = backend.default_namespace()
    for way in (
        lambda: x.to("gpu"),
        lambda: tv.tensor([1.0], device="gpu"),
        lambda: tv.tensor(np.ones(1), device="gpu"),
        lambda: tv.ops.to_device(x, "gpu"),
        lambda: tv.use_backend("cupy"),
    ):
        with pytest.raises(tv.BackendError, match="CuPy") as error:
            way()
        assert one_sentence(error)
    assert backend.default_namespace() is before
    assert not tv.gpu_available()


def test_cupy_without_a_driver_is_told_apart_from_no_cupy(monkeypatch):
    """`import cupy` succeeds on a machine without a driver; only the first allocation would fail."""
    cupy, special = types.ModuleType("cupy"), types.ModuleType("cupyx.scipy.special")
    cupy.is_available = lambda: False
    monkeypatch.setattr(backend, "_cupy", None)
    modules = {"cupy": cupy, "cupyx": types.ModuleType("cupyx"), "cupyx.scipy": types.ModuleType("cupyx.scipy")}
    for name, module in (modules | {"cupyx.scipy.special": special}).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert not tv.gpu_available()
    with pytest.raises(tv.BackendError, match="CuPy is installed but finds no usable NVIDIA GPU or driver") as error:
        tv.tensor([1.0], device="gpu")
    assert one_sentence(error)
    assert tv.tensor([1.0]).to("auto").device == "cpu"


def test_without_cupy_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(backend, "_cupy", None)
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy raises ImportError
    with pytest.raises(tv.BackendError, match=r"not installed: pip install 'tinyvit\[cuda13\]'") as error:
        tv.use_backend("cupy")
    assert one_sentence(error)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "CPU", ""])
def test_an_unknown_device_is_refused(device):
    message = f"unknown device {device!r}: use 'cpu', 'gpu' or 'auto'"
    for way in (lambda: tv.tensor([1.0]).to(device), lambda: backend.namespace_on(device)):
        with pytest.raises(tv.BackendError, match=message):
            way()


def test_a_tensor_stays_where_it_is_at_no_cost():
    x = tv.tensor([1.0], requires_grad=True)
    assert x.to("cpu") is x
    assert x.device == "cpu"


def test_the_auto_device_is_the_gpu_where_there_is_one():
    there = "gpu" if tv.gpu_available() else "cpu"
    assert backend.namespace_on("auto").device == there
    assert tv.tensor([1.0], device="auto").device == there
    assert tv.tensor(np.ones(1), device="auto").device == there


def test_the_environment_variable_names_the_default_backend():
    code = "import tinyvit as tv; print(tv.tensor([1.0]).device)"
    assert python(code) == (0, "cpu", "")
    assert python(code, TINYVIT_BACKEND="numpy") == (0, "cpu", "")


def test_a_wrong_environment_variable_is_an_error_when_a_tensor_is_made_that_names_the_variable():
    code, result, error = python("import tinyvit as tv; print('imported'); tv.tensor([1.0])", TINYVIT_BACKEND="nunpy")
    assert (code, result) == (1, "imported")
    assert "BackendError: " in error
    assert "'nunpy'" in error.splitlines()[-1]
    assert "TINYVIT_BACKEND" in error.splitlines()[-1]


@without_gpu
def test_the_cupy_backend_in_the_environment_needs_a_gpu():
    code, result, error = python("import tinyvit as tv; print('imported'); tv.tensor([1.0])", TINYVIT_BACKEND="cupy")
    assert (code, result) == (1, "imported")
    assert "BackendError: " in error.splitlines()[-1]


def test_a_namespace_has_numpys_names_and_looks_each_up_once():
    xp = backend.Namespace(np, "cpu", backend.NUMPY.erf)
    assert "exp" not in vars(xp)
    assert xp.exp is np.exp
    assert vars(xp)["exp"] is np.exp
    with pytest.raises(AttributeError):
        xp.no_such_function  # noqa: B018
    with pytest.raises(AttributeError):
        xp.__wrapped__  # noqa: B018
