"""The GPU's kernels without a GPU: their sources run as fibers on a CPU, launched by the code that launches them there.

CuPy is the stand-in, cuBLAS's products are NumPy's, and everything else is the kernels' own: indices, strides, grids,
barriers, shuffles, and the layouts of the tensor cores. The tests are those of tests/test_gpu.py, on the same cases.
What only a GPU can tell is how fast they are, and what happens to those that do not wait for one another.
"""

import ctypes
from types import SimpleNamespace

import cuda_on_a_cpu
import numpy as np
import pytest
import strict_cupy
import test_gpu
from test_without_a_gpu import stand_in  # noqa: F401 -- a fixture

import tinyvit as tv
from tinyvit.engine import kernels
from tinyvit.engine.kernels import gpu
from tinyvit.training import EMA, SGD, AdamW, Trainer, cosine, freeze, layer_scales

pytest.importorskip("ml_dtypes", reason="bfloat16 on the host needs ml_dtypes")
pytestmark = pytest.mark.skipif(not cuda_on_a_cpu.available(), reason="needs g++")


def product(a, b, out, bias=None, tf32=False):
    """In the place of cublas.product."""

    def multiply():
        found = a._array.astype(np.float32) @ b._array.astype(np.float32)
        out._array[...] = found if bias is None else found + bias._array.astype(np.float32)

    strict_cupy.perform(multiply)


def products(a, b, out, n, m, k, scale=1.0, tf32=False):
    """In the place of cublas.products: the matrices are where the addresses say."""

    def multiply():
        for left, right, result in zip(*(batch.addresses._array for batch in (a, b, out)), strict=True):
            found = _matrix(left, a, n, k) @ _matrix(right, b, k, m) * np.float32(scale)
            _at(result, out, n, m)[...] = found

    strict_cupy.perform(multiply)


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
    device = SimpleNamespace(attributes={"MultiProcessorCount": 2})
    monkeypatch.setattr(strict_cupy.cupy, "RawModule", cuda_on_a_cpu.RawModule, raising=False)
    monkeypatch.setattr(strict_cupy.cuda, "Device", lambda: device, raising=False)
    monkeypatch.setattr(gpu, "product", product)
    monkeypatch.setattr(gpu, "products", products)
    monkeypatch.setitem(kernels._found, "gpu", gpu.KERNELS)
    _forget()
    with kernels.switched(True):  # also under TINYVIT_KERNELS=off
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


test_of_a_sum_and_its_norm = test_gpu.test_of_a_sum_and_its_norm_only_the_gradients_that_are_asked_for_are_made

# ----------------------------------------------------------------------------------------------- launches in a step


@pytest.fixture
def launched(monkeypatch):
    """The names of what is launched: kernels, and the functions of CuPy that make a pass over arrays."""
    names, function, compute = [], gpu._function, strict_cupy._compute

    def named(name, *types, **per):
        names.append(name)
        return function(name, *types, **per)

    def computed(name, *arguments, **named):
        names.extend([name] * (name not in ("empty", "ascontiguousarray")))
        return compute(name, *arguments, **named)

    named.cache_clear = function.cache_clear
    monkeypatch.setattr(gpu, "_function", named)
    monkeypatch.setattr(strict_cupy, "_compute", computed)
    return names


@pytest.mark.parametrize("half", [None, "bfloat16"])
def test_a_sum_and_its_norm_are_a_pass_forward_and_a_pass_back_beside_the_sums_over_rows(launched, half):
    arrays = [np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in ((3, 8), (3, 8), (8,), (8,))]
    inputs = [tv.tensor(a, device="gpu", requires_grad=True) for a in arrays]
    inputs[1] = inputs[1].astype(half or np.float32)
    along = [tv.tensor(arrays[0], device="gpu")] * 2

    def launches_of(op):
        launched.clear()
        results = op(*inputs)
        forward = [*launched]
        launched.clear()
        tv.grad(results, inputs, along)
        return forward, [name for name in launched if name != "copy"]  # of what is handed out

    def apart(x, branch, weight, bias):
        s = x + branch
        return s, tv.ops.layer_norm(s, weight, bias)

    sums = ["norm_columns", "sum_rows"]
    assert launches_of(tv.ops.add_layer_norm) == (["add_layer_norm"], ["add_layer_norm_backward", *sums])
    to_half = ["astype"] if half else []
    assert launches_of(apart) == (["add", "layer_norm"], ["layer_norm_backward", *sums, "add", *to_half])


@pytest.mark.parametrize(("precision", "conversions"), [("fp32", 0), ("bf16", 6)])  # two where tokens are left
def test_in_a_model_every_sum_of_a_residual_is_made_by_a_norm(launched, precision, conversions):
    model = tv.ViT(tv.ViTConfig(8, 4, channels=1, num_classes=10, dim=32, depth=3, num_heads=2))
    model.to(device="gpu")
    images = strict_cupy.asarray(np.ones((2, 1, 8, 8), np.float32))
    launched.clear()
    with tv.precision(precision):
        loss = tv.ops.cross_entropy(model(images), np.array([1, 2]))
    assert (launched.count("add_layer_norm"), launched.count("layer_norm"), launched.count("add")) == (6, 1, 1)
    launched.clear()
    loss.backward()
    assert (launched.count("add_layer_norm_backward"), launched.count("layer_norm_backward")) == (6, 1)
    # one sum of gradients: that of the embedding, which the first norm and the first sum read
    assert (launched.count("add"), launched.count("astype")) == (1, conversions)


# -------------------------------------------------------------------------------------------------- a step as a graph


def trained(recorded=True, batches=(12,) * 6, optimizer=AdamW, frozen=0, layer_decay=1.0, **settings):
    """(losses, parameters, averages, the trainer) after some steps of a graph, or of what it records."""
    config = tv.ViTConfig(8, 4, channels=1, num_classes=10, dim=32, depth=1, num_heads=2, dropout=0.2)
    model = tv.ViT(config, np.random.default_rng(0))
    model.to(device="gpu")
    freeze(model, frozen)
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ema = EMA(free.items(), decay=0.9)
    loader = SimpleNamespace(batch_size=12)
    scales = layer_scales(free, config.depth, layer_decay)
    made = optimizer(free.items(), lr=1e-3, weight_decay=0.1, lr_scales=scales)
    trainer = Trainer(
        model, made, cosine(1e-2, total=8, warmup=2), loader, epochs=1, clip_norm=0.5, ema=ema, graph=True, **settings
    )
    if not recorded:
        trainer._backward._record = lambda batch: False
    losses, before = [], 0.0
    for step, size in enumerate(batches):
        rng = np.random.default_rng(step)
        images = strict_cupy.asarray(rng.standard_normal((size, 1, 8, 8)).astype(np.float32))
        trainer.train_step(images, strict_cupy.asarray(rng.integers(0, 10, size)))
        losses.append(float(trainer._totals.loss) - before)
        before = float(trainer._totals.loss)
    return losses, np.concatenate([p.numpy().ravel() for p in model.parameters()]), ema.state_dict(), trainer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"optimizer": SGD},
        {"layer_decay": 0.5},
        {"frozen": 1, "layer_decay": 0.5},
        {"frozen": -1},
    ],
    ids=str,
)
def test_a_whole_step_as_a_graph_gives_the_bits_of_one_without(settings):
    """Forward, backward, clipping, update and averages; the step size and the corrections change with every step."""
    losses, parameters, averages, plain = trained(recorded=False, **settings)
    again, moved, drawn, trainer = trained(**settings)
    assert trainer._backward.recorded
    assert trainer._whole == ("optimizer" not in settings and settings.get("precision") != "fp16")
    assert again == losses
    assert (moved == parameters).all()
    assert all((drawn[name] == averages[name]).all() for name in averages)
    assert trainer.optimizer.steps == plain.optimizer.steps


def test_a_batch_of_another_shape_between_two_of_the_graph(capsys):
    sizes = (12, 12, 12, 12, 7, 12, 7, 12)
    losses, parameters, _, _ = trained(recorded=False, batches=sizes)
    again, moved, _, _ = trained(batches=sizes)
    assert again == losses
    assert (moved == parameters).all()
    assert capsys.readouterr().err.count("is not of the graph's shape") == 2  # of each trainer


def test_a_graph_is_one_launch_and_a_few_numbers(monkeypatch):
    _, _, _, trainer = trained()
    rng = np.random.default_rng(9)
    images = strict_cupy.asarray(rng.standard_normal((12, 1, 8, 8)).astype(np.float32))
    labels = strict_cupy.asarray(rng.integers(0, 10, 12))
    launched = []
    perform = strict_cupy.perform
    monkeypatch.setattr(strict_cupy, "refuse_synchronisations", True)
    monkeypatch.setattr(strict_cupy, "perform", lambda what: launched.append(what) or perform(what))
    trainer.train_step(images, labels)
    # the dropout's key, two arrays of inputs, and the numbers of AdamW (decayed or not) and of the averages
    assert len(launched) <= 16


def test_a_recording_that_is_void_at_its_end_has_counted_no_step(monkeypatch, capsys):
    losses, parameters, averages, plain = trained(recorded=False)

    def void(stream):
        strict_cupy.recording = None
        raise RuntimeError("cudaErrorStreamCaptureInvalidated")

    monkeypatch.setattr(strict_cupy.Stream, "end_capture", void)
    again, moved, drawn, trainer = trained()
    assert not trainer._backward.recorded
    assert "cannot be recorded" in capsys.readouterr().err
    assert again == losses
    assert (moved == parameters).all()
    assert drawn["updates"] == averages["updates"]
    assert trainer.optimizer.steps == plain.optimizer.steps
