"""The GPU path without a GPU: on a strict stand-in for CuPy, every op, and training that never waits.

What only a GPU can tell (the kernels, and what the bits are) is in tests/test_kernels.py and behind `pytest -m gpu`.
"""

import importlib.util
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import strict_cupy
import test_backend
import test_ops
import test_optim
import test_probes
import test_trainer
import test_vit

import tinyvit as tv
from tinyvit import cli
from tinyvit.data import Loader, digits
from tinyvit.engine import backend, kernels
from tinyvit.study import audit
from tinyvit.study.audit.report import FAIL, PASS
from tinyvit.study.audit.samples import NOT_DIFFERENTIABLE
from tinyvit.study.explain.document import facts
from tinyvit.training import EMA, SGD, Adam, AdamW, clip_grad_norm, evaluate, load_checkpoint, predict, save_checkpoint

cp = strict_cupy.cupy


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in in CuPy's place; the array code in the place of kernels, which need CUDA."""
    for name, module in strict_cupy.MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(backend, "_cupy", None)
    monkeypatch.setitem(kernels._found, "gpu", {})
    for counter in ("launches", "uploads", "synchronisations"):
        monkeypatch.setattr(strict_cupy, counter, 0)
    return strict_cupy


@pytest.fixture
def device(stand_in):
    """In the place of conftest's: where the tests below compute that were written for every device."""
    return "gpu"


@pytest.fixture
def no_drift(stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "refuse_float64", True)


@pytest.fixture
def no_waiting(stand_in, monkeypatch):
    """A context in which whatever waits for the GPU raises where it does."""

    def during(f, *arguments):
        with monkeypatch.context() as context:
            context.setattr(stand_in, "refuse_synchronisations", True)
            return f(*arguments)

    return during


# ------------------------------------------------------------------- every test that was written for every device

for _module in (test_ops, test_vit, test_trainer, test_probes):
    for _name, _test in inspect.getmembers(_module, inspect.isfunction):
        if _name.startswith("test_") and "device" in inspect.signature(_test).parameters:
            globals()[_name] = _test


ON_A_GPU = [
    test_backend.test_the_cupy_backend_puts_new_tensors_on_the_gpu_until_its_block_ends,
    test_backend.test_numbers_of_every_kind_meet_arrays_on_the_gpu,
    test_ops.test_a_tensor_goes_to_the_gpu_and_its_gradient_comes_back,
]


@pytest.mark.parametrize("test", ON_A_GPU, ids=lambda test: test.__name__.removeprefix("test_"))
def test_what_was_written_for_a_gpu_alone_holds_too(stand_in, test):
    test()


# ------------------------------------------------------------------------------------------------------- every op

METHODS = [
    "recorded sweep", "layout", "repeated", "aliased", "determinism", "twin float64", "twin float32", "twin float16",
    "float32", "float16", "backends", "choice",
]  # fmt: skip


@pytest.mark.parametrize("name", audit.names())
def test_values_and_gradients_are_those_of_the_cpu_in_every_layout_and_dtype(stand_in, name):
    rows = [row for sample in audit.registry([name]) for row in audit.examine(sample, "gpu", METHODS)]
    assert [row.sentence() for row in rows if row.verdict == FAIL] == []
    assert any(row.verdict == PASS for row in rows) or name in NOT_DIFFERENTIABLE


@pytest.mark.parametrize("name", sorted(set(audit.names()) - {"astype"}))
def test_narrow_numbers_stay_narrow_on_the_way_to_the_result_and_back_and_nothing_waits(stand_in, no_drift, name):
    for sample in audit.registry([name]):
        if "constant base" in sample.case:
            continue  # the logarithm of integers is float64
        for dtype in (np.float32, np.float16):
            f, inputs = sample.prepare("gpu", dtype)
            before = stand_in.synchronisations
            for y in f(*inputs):
                if y.requires_grad:
                    y.backward(tv.tensor(np.ones(y.shape, dtype), device="gpu"), retain_graph=True)
            if name != "getitem":  # which takes masks: how many they choose decides the shape
                assert stand_in.synchronisations == before, sample


def test_a_whole_number_on_the_gpu_is_an_index(stand_in):
    assert range(3)[tv.tensor(2, dtype=int, device="gpu")] == 2


@pytest.mark.parametrize("op", ["squeeze", "split", "to_device"])
def test_a_result_that_is_its_argument_notices_that_it_was_overwritten(stand_in, op):
    x = tv.tensor(np.ones((2, 3)), device="gpu", requires_grad=True)
    y = {"squeeze": tv.ops.squeeze(x), "split": tv.ops.split(x, 1)[0], "to_device": tv.ops.to_device(x, "gpu")}[op]
    loss = (y * y).sum()
    with tv.no_grad():
        x[...] = 5.0
    with pytest.raises(tv.TapeError, match="overwritten"):
        loss.backward()


def test_a_list_is_assigned_as_on_a_cpu(stand_in):
    x = tv.tensor(np.ones(3), device="gpu")
    x[...] = [1.0, 2.0, 3.0]
    assert x.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8"])
def test_small_integers_are_scattered_as_on_a_cpu(stand_in, dtype):
    values, index = np.ones(2, dtype), np.array([1, 1])
    there = tv.ops.scatter_add(tv.tensor(values, device="gpu"), index, (3,)).numpy()
    np.testing.assert_array_equal(there, tv.ops.scatter_add(values, index, (3,)).numpy(), strict=True)


# -------------------------------------------------------------------------------------------------------- training

DIGITS = test_trainer.DIGITS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", test_optim.CASES)
def test_an_optimizer_takes_the_cpus_steps_and_does_not_wait(stand_in, no_waiting, case, dtype):
    kind, _, settings = test_optim.CASES[case]
    states = []
    for there in ("cpu", "gpu"):
        parameters = {
            name: tv.tensor(a, device=there, requires_grad=True) for name, a in test_optim.arrays(0, dtype).items()
        }
        optimizer = kind(parameters.items(), **settings)
        for step in range(3):
            for name, g in test_optim.arrays(step, dtype).items():
                parameters[name].grad = None if (step, name) == (1, "pos") else tv.tensor(g, device=there)
            norm = no_waiting(clip_grad_norm, parameters.items(), 1.0)
            no_waiting(optimizer.step)
        states.append({name: p.numpy() for name, p in parameters.items()} | optimizer.state_dict() | {"norm": norm})
        assert {p.device for p in parameters.values()} == {there}
    assert states[1].keys() == states[0].keys()
    for key, value in states[0].items():
        np.testing.assert_allclose(backend.to_device(states[1][key], "cpu"), value, 1e-5, 1e-7, err_msg=key)


def trainer_on(device, epochs=2, drop=0.1, **changes):
    model = test_trainer.model_of(filled=True, device=device, dropout=drop, drop_path=drop, attention_dropout=drop)
    return test_trainer.trainer_of(
        model, test_trainer.part(40), epochs=epochs, clip_norm=0.5, ema=0.9, label_smoothing=0.1, **changes
    )


def batch():
    return next(Loader(test_trainer.part(16), 16, **test_trainer.NORMALISED).epoch())


@pytest.mark.parametrize(("optimizer", "shards"), [(SGD, 1), (Adam, 2), (AdamW, 3)])
def test_training_gives_the_cpus_losses_without_waiting_and_without_float64(
    stand_in, no_drift, no_waiting, optimizer, shards
):
    there, here = (trainer_on(device, optimizer=optimizer, shards=shards) for device in ("gpu", "cpu"))
    train_step = there.train_step
    there.train_step = lambda *batch: no_waiting(train_step, *batch)
    with kernels.switched(False):  # Adam makes much of the last bits of a gradient of zero, such as the keys' bias has
        records = list(zip(here.run(), there.run(), strict=True))
    for expected, record in records:
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert record["train_accuracy"] == expected["train_accuracy"]
    arrays, expected = there.state()[0], here.state()[0]
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_allclose(arrays[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("drop", "masks"), [(0.0, 0), (0.1, 11)])
def test_a_step_on_a_batch_that_is_there_sends_nothing_but_what_it_drops_and_asks_for_nothing(stand_in, drop, masks):
    """What a CUDA graph records must send nothing: then a kernel draws the masks (tests/test_gpu.py)."""
    trainer = trainer_on("gpu", drop=drop)
    images, labels = map(cp.asarray, batch())
    before = stand_in.uploads
    trainer.train_step(images, labels)
    assert (stand_in.uploads - before, stand_in.synchronisations) == (masks, 0)


@pytest.mark.parametrize(("precision", "waits"), [("fp32", 0), ("bf16", 0), ("fp16", 1)])
def test_only_the_scaled_loss_of_fp16_waits_and_once_a_step(stand_in, precision, waits):
    trainer = trainer_on("gpu", precision=precision)
    trainer.train_step(*batch())
    before = stand_in.synchronisations
    trainer.train_step(*batch())
    assert stand_in.synchronisations == before + waits


def test_a_run_that_was_interrupted_goes_on_bit_for_bit_and_on_a_cpu_too(stand_in, tmp_path):
    whole = trainer_on("gpu", epochs=3)
    [first, *rest] = [record["loss"] for record in whole.run()]
    half = trainer_on("gpu", epochs=3)
    assert next(half.run())["loss"] == first
    save_checkpoint(tmp_path / "step.safetensors", *half.state())
    for device, tolerance in (("gpu", 0), ("cpu", 1e-5)):
        resumed = trainer_on(device, epochs=3)
        resumed.load_state(*load_checkpoint(tmp_path / "step.safetensors"))
        assert [record["loss"] for record in resumed.run()] == pytest.approx(rest, rel=tolerance, abs=0)
        if device == "gpu":
            test_optim.assert_same(resumed.state()[0], whole.state()[0])


def test_the_average_of_a_narrow_model_is_wide_and_takes_the_models_place(stand_in, no_waiting):
    p = tv.tensor(np.full((2, 3), 1.0, np.float16), device="gpu", requires_grad=True)
    ema = EMA([("p", p)], decay=0.9)
    p.data[...] = 2.0
    no_waiting(ema.update)
    with ema.applied():
        assert (p.device, p.dtype) == ("gpu", np.float16)
        np.testing.assert_allclose(p.numpy(), np.full((2, 3), 1.9), rtol=1e-3)
    assert (ema.shadows[0].dtype, p.numpy()[0, 0]) == (np.float32, 2.0)


def test_evaluation_and_prediction_are_those_of_the_cpu(stand_in, no_drift):
    loader = Loader(test_trainer.part(50), 32, **test_trainer.NORMALISED)
    there, here = (test_trainer.model_of(filled=True, device=device) for device in ("gpu", "cpu"))
    assert evaluate(there, loader) == pytest.approx(evaluate(here, loader), rel=1e-5)
    images = DIGITS.test.images[:9]
    np.testing.assert_allclose(predict(there, images, (0.3,), (0.4,), 4), predict(here, images, (0.3,), (0.4,)), 1e-4)


# ---------------------------------------------------------------------------------- the stand-in itself is strict

X = cp.asarray(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32))
HOST = np.ones(3, np.float32)


@pytest.mark.parametrize("convert", [np.asarray, np.array, np.float64, lambda x: np.array([x, x])])
def test_no_array_becomes_numpys_by_itself(convert):
    with pytest.raises(TypeError, match="Implicit conversion"):
        convert(X)
    assert not hasattr(X, "__array_interface__")
    with pytest.raises(TypeError):
        memoryview(X)


@pytest.mark.parametrize("f", [np.exp, np.sum, np.mean, np.shape, np.concatenate, lambda x: np.add(x, 1), np.sqrt])
def test_numpys_functions_refuse_its_arrays(f):
    with pytest.raises(TypeError):
        f(X)


def assign(index, value):
    cp.zeros((2, 3))[index] = value


def add_in_place(x, y):
    x += y


MIXED = {
    "array + host": lambda: X + HOST,
    "host + array": lambda: HOST + X,
    "array += host": lambda: add_in_place(X.copy(), HOST),
    "host += array": lambda: add_in_place(HOST.copy(), X[0]),
    "array < host": lambda: X < HOST,
    "array @ host": lambda: X @ HOST,
    "array + host of one number": lambda: X + HOST[:1],
    "ufunc": lambda: cp.multiply(X, HOST),
    "where": lambda: cp.where(X > 0, X, HOST),
    "clip": lambda: cp.clip(X, HOST, None),
    "concatenate": lambda: cp.concatenate([X[0], HOST]),
    "assignment": lambda: assign(..., HOST),
    "assignment of a list": lambda: assign(..., [1.0, 2.0, 3.0]),
    "index": lambda: X[np.array([0, 1])],
    "list as index": lambda: X[[0, 1]],
    "add.at": lambda: cp.add.at(X, (cp.asarray([0]),), HOST),
    "out": lambda: cp.exp(X[0], out=HOST),
    "array + Tensor's array": lambda: cp.add(X, tv.tensor(HOST)),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_arrays_of_the_host_are_not_taken(mix):
    with pytest.raises(TypeError):
        mix()


@pytest.mark.parametrize("number", [2, 2.0, True, np.float32(2), np.int64(2), np.array(2.0, np.float32)])
def test_numbers_of_the_host_are_taken_on_either_side(number):
    for y in (X + number, number + X, cp.add(X, number)):
        assert isinstance(y, cp.ndarray)
        np.testing.assert_array_equal(y.get(), X.get() + number, strict=True)


@pytest.mark.parametrize(
    "f", [cp.sum, cp.max, cp.argmax, cp.mean, lambda x: x[0, 1], lambda x: x.sum(), cp.array_equal]
)
def test_a_single_number_is_an_array_without_axes(f):
    y = f(X, X) if f is cp.array_equal else f(X)
    assert (type(y), y.shape) == (cp.ndarray, ())


WAITING = {
    "float": float, "int": int, "bool": bool, "repr": repr, "format": "{}".format, "item": lambda x: x.item(),
    "get": lambda x: x.get(), "tolist": lambda x: x.tolist(), "asnumpy": cp.asnumpy, "nonzero": cp.nonzero,
    "where": cp.where, "if": lambda x: 1 if x > 0 else 2, "mask": lambda x: X[X > 3],
    "full": lambda x: cp.full(3, x), "stream": lambda x: cp.cuda.get_current_stream().synchronize(),
}  # fmt: skip


@pytest.mark.parametrize("ask", WAITING.values(), ids=WAITING)
def test_what_waits_is_counted_or_refused(stand_in, monkeypatch, ask):
    x = X.sum() if ask not in (cp.nonzero, cp.where) else X
    before = stand_in.synchronisations
    ask(x)
    assert stand_in.synchronisations == before + 1
    monkeypatch.setattr(stand_in, "refuse_synchronisations", True)
    with pytest.raises(AssertionError, match="waits for the GPU"):
        ask(x)


def test_computing_is_counted_and_waits_for_nothing(stand_in):
    y = cp.where(X > 1, X * 2, 0.0)
    y += cp.asarray(HOST)
    y[0] = 1
    assert (stand_in.launches, stand_in.uploads, stand_in.synchronisations) == (5, 1, 0)
    assert y.T.reshape(3, 2)[1:, None].squeeze().base is not None
    assert y.reshape(-1)[::2].astype(np.float32, copy=False).base is y
    assert stand_in.launches == 5


@pytest.mark.parametrize("name", ["errstate", "vecdot", "block", "einsum_path", "insert", "random", "frompyfunc"])
def test_what_cupy_lacks_is_not_there(name):
    assert not hasattr(cp, name)


@pytest.mark.parametrize("f", [cp.sum, cp.mean, cp.max, cp.amax])
@pytest.mark.parametrize("argument", [{"where": True}, {"initial": 0.0}])
def test_reductions_lack_some_of_numpys_arguments(f, argument):
    with pytest.raises(TypeError, match="unexpected keyword"):
        f(X, **argument)


DRIFT = {
    "number": lambda: X * np.float64(2),
    "array": lambda: X + cp.ones(3),
    "integers": lambda: X * cp.arange(3),
    "erf of float16": lambda: strict_cupy.erf(X.astype(np.float16)),
    "where": lambda: cp.where(X > 0, X, np.float64(0)),
}


@pytest.mark.parametrize("compute", DRIFT.values(), ids=DRIFT)
def test_narrow_numbers_that_become_wide_are_refused(no_drift, compute):
    with pytest.raises(AssertionError, match="gives float64"):
        compute()
    assert (X * 2.0 + 1).dtype == np.float32
    assert X.astype(np.float64).dtype == cp.square(X, dtype=np.float64).dtype == np.float64


def test_what_cupy_leaves_undefined_is_refused():
    twice = cp.asarray([0, 0])
    with pytest.raises(AssertionError, match="written twice"):
        assign(twice, cp.ones((2, 3)))
    with pytest.raises(IndexError):
        X[cp.asarray([7])]
    with pytest.raises(TypeError):
        cp.add.at(cp.zeros(3, np.int8), (twice,), cp.ones(2, np.int8))
    with pytest.raises(TypeError):
        hash(X)
    with pytest.raises(TypeError):
        range(cp.asarray(3))  # CuPy's arrays have no __index__
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.asarray(["a"])


def test_views_share_memory_and_say_whose(stand_in):
    whole = cp.zeros(6, np.float32)
    part = whole[2:4].reshape(2, 1)
    part[...] = 1
    assert whole.tolist() == [0, 0, 1, 1, 0, 0]
    assert part.base is whole
    assert part.data.ptr == whole.data.ptr + 8
    assert cp.may_share_memory(part, whole)
    assert not cp.may_share_memory(part.copy(), whole)
    assert whole[cp.asarray([0])].base is None
    assert (part.strides, part.itemsize, part.nbytes, part.flags.c_contiguous) == ((4, 4), 4, 8, True)


COMMANDS = [  # on what `train` left in r
    ["train", "--resume", "--out", "r", "--epochs", "3"],
    ["eval", "r", "--report", "again.html"],
    ["predict", "r", "one.npy", "--attention", "look.png"],
    ["features", "r", "one.npy", "--out", "found.npz"],
    ["probe", "r", "--data", "digits"],
    ["audit", "softmax", "EncoderLayer", "--workers", "1"],  # processes of its own would have no stand-in
]


def test_every_command_computes_on_the_gpu(stand_in, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", digits().test.images[0])
    small = ["--set", "model.dim=16", "--set", "model.depth=1", "--set", "data.batch_size=500", "--epochs", "2"]
    assert cli.main(["train", "--device", "gpu", *small, "--out", "r"]) == 0
    assert ", on the gpu; " in capsys.readouterr().out
    assert "no GPU, but a stand-in" in Path("r/report.html").read_text(encoding="utf-8")
    for command in COMMANDS:
        before = stand_in.launches
        assert cli.main([*command, "--device", "gpu"]) == 0, capsys.readouterr().err
        assert stand_in.launches > before, command
    assert {"again.html", "look.png", "found.npz"} <= {path.name for path in tmp_path.iterdir()}


def test_a_tape_on_the_gpu_is_shown_as_one_on_the_cpu(stand_in):
    shown = []
    with kernels.switched(False):
        for where in ("cpu", "gpu"):
            model = tv.ViT(tv.ViTConfig(8, 4, 1, 3, dim=16, depth=2, num_heads=2), np.random.default_rng(0))
            model.to(device=where)
            images = tv.tensor(np.ones((2, 1, 8, 8), np.float32), device=where, requires_grad=True)
            with tv.study.watch():
                loss = tv.ops.cross_entropy(model(images), np.array([0, 2]))
            shown.append(facts(loss))
    for cpu, gpu in zip(*(data["nodes"] for data in shown), strict=True):
        assert (cpu["op"], cpu["value"], cpu["gradient"]) == (gpu["op"], gpu["value"], gpu["gradient"])
        assert cpu["saved"] == gpu["saved"]
    assert shown[0]["memory"] == shown[1]["memory"]
    assert shown[0]["attention"] == shown[1]["attention"]


@pytest.mark.slow
def test_the_demo_of_a_gpu_trains_there_as_on_a_cpu(stand_in):
    """Kernels, and so bfloat16 and graphs, take a GPU: its assertions on those are for `pytest -m gpu`."""
    path = Path(__file__).parent.parent / "demos" / "13_on_a_gpu.py"
    spec = importlib.util.spec_from_file_location("on_a_gpu", path)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    assert demo.why_not() == ""
    with kernels.switched(False):
        np.testing.assert_allclose(demo.train("gpu", "bf16"), demo.train("cpu"), rtol=1e-4)
    assert stand_in.launches


def test_after_it_everything_is_as_before():
    assert "cupy" not in sys.modules or sys.modules["cupy"] is not cp
    assert backend._cupy is None or backend._cupy.module is not cp
