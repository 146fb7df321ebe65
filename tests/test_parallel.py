"""Gradient shards: the same bits for any number of workers, the whole batch's gradient, and nothing half-done."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

import tinyvit as tv
from tinyvit.data import Loader, digits
from tinyvit.engine import random, tape
from tinyvit.engine.kernels.memory import keep_freed_memory
from tinyvit.training import AdamW, Trainer, constant, evaluate, infer, parallel_backward, predict
from tinyvit.training.parallel import cut, default_workers, in_workers, map_shards, shards_for

CONFIG = tv.ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=5, dim=16, depth=3, num_heads=2)
DROPPING = {"dropout": 0.2, "attention_dropout": 0.2, "drop_path": 0.3}
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((13, 1, 8, 8)).astype(np.float32)
LABELS = RNG.integers(0, 5, 13)


def model_of(dtype=np.float32, **changes):
    model = tv.ViT(tv.ViTConfig(**{**CONFIG.__dict__, **changes}), np.random.default_rng(1))
    for p in model.parameters():
        p.data[...] = np.random.default_rng(p.size).standard_normal(p.shape) / 5
    return model.to(dtype=dtype)


def loss_of(model):
    return lambda images, labels: tv.ops.cross_entropy(model(images), labels)


def gradients(model):
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


def bits(model):
    return {name: p.grad.numpy().tobytes() for name, p in model.named_parameters()}


# --------------------------------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 13, 100])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_gradient_and_the_loss_are_the_whole_batchs(shards, workers):
    model = model_of(np.float64)
    whole = loss_of(model)(IMAGES, LABELS)
    whole.backward()
    expected = gradients(model)
    model.zero_grad()
    loss = parallel_backward(loss_of(model), IMAGES, LABELS, shards=shards, workers=workers)
    assert loss.shape == ()
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    for name, found in gradients(model).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-9, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("settings", [{}, DROPPING, {**DROPPING, "checkpoint": True}], ids=str)
def test_the_bits_do_not_depend_on_the_workers(settings):
    found = []
    for workers in (1, 2, 4, 2, 1):
        model = model_of(**settings)
        tv.seed(7)
        loss = parallel_backward(loss_of(model), IMAGES, LABELS, shards=5, workers=workers)
        found.append((loss.numpy().tobytes(), bits(model)))
    assert all(f == found[0] for f in found)


def test_shards_that_arrive_in_any_order_are_added_in_their_own():
    w = tv.tensor(np.zeros(3, np.float32), requires_grad=True)
    x = (RNG.standard_normal((6, 3)) * 10.0 ** RNG.integers(-6, 6, (6, 3))).astype(np.float32)

    def slow_first(part):
        if not np.shares_memory(part, x[:1]):
            return (w * part).sum()
        time.sleep(0.1)  # the others wait for this one's turn
        return (w * part).sum()

    parallel_backward(slow_first, x, shards=6, workers=4)
    expected = np.zeros(3, np.float32)
    for row in x:
        expected += row * np.float32(1 / 6)
    np.testing.assert_array_equal(w.grad.numpy(), expected)


def test_a_leaf_that_some_shards_do_not_use_gets_the_others_gradients():
    a, b = (tv.tensor(np.ones(2), requires_grad=True) for _ in range(2))
    x = np.arange(8.0).reshape(4, 2)
    parallel_backward(lambda part: (part * (a if part[0, 0] >= 4 else b)).sum(), x, shards=4, workers=2)
    np.testing.assert_array_equal(b.grad.numpy(), (x[0] + x[1]) / 4)
    np.testing.assert_array_equal(a.grad.numpy(), (x[2] + x[3]) / 4)


def test_gradients_are_added_to_those_that_are_there():
    model = model_of()
    AdamW(model.named_parameters())
    for _ in range(2):
        parallel_backward(loss_of(model), IMAGES, LABELS)
    twice = gradients(model)
    model.zero_grad()
    parallel_backward(loss_of(model), IMAGES, LABELS)
    for name, once in gradients(model).items():
        np.testing.assert_allclose(twice[name], 2 * once, rtol=1e-6)


def test_a_gradient_somebody_holds_is_not_overwritten_by_the_next_step():
    model = model_of()
    optimizer = AdamW(model.named_parameters())
    parallel_backward(loss_of(model), IMAGES, LABELS)
    held = model.head.weight.grad
    before = held.numpy().copy()
    optimizer.zero_grad()
    parallel_backward(loss_of(model), IMAGES * 2, LABELS)
    np.testing.assert_array_equal(held.numpy(), before)
    assert not np.array_equal(model.head.weight.grad.numpy(), before)


def test_all_gradients_lie_side_by_side_in_the_optimizers_buffer():
    model = model_of()
    optimizer = AdamW(model.named_parameters())
    parallel_backward(loss_of(model), IMAGES, LABELS)
    [flat] = optimizer.gradients
    assert flat.size == model.num_parameters
    assert all(np.shares_memory(p.grad.numpy(), flat) for p in model.parameters())
    assert np.linalg.norm(flat) == pytest.approx(np.sqrt(sum((g**2).sum() for g in gradients(model).values())))


def test_each_shard_draws_its_own_chances_and_the_callers_generator_stays():
    drawn = {}
    w = tv.tensor([1.0], requires_grad=True)

    def loss(part):
        drawn[part[0]] = random.generator().random()
        return (w * 1.0).sum()

    tv.seed(0)
    before = random.generator().bit_generator.state
    parallel_backward(loss, np.arange(4), shards=4, workers=2)
    assert len(set(drawn.values())) == 4
    assert random.generator().bit_generator.state == before
    first = dict(drawn)
    tv.seed(0)
    parallel_backward(loss, np.arange(4), shards=4, workers=1)
    assert drawn == first


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_in_a_shard_is_the_callers_and_the_gradients_stay_as_they_were(workers):
    model = model_of()
    parallel_backward(loss_of(model), IMAGES, LABELS)
    before = bits(model)

    def failing(images, labels):
        if len(images) and images[0] is not None and np.shares_memory(images, IMAGES[4:6]):
            raise ArithmeticError("shard 2")
        return loss_of(model)(images, labels)

    with pytest.raises(ArithmeticError, match="shard 2"):
        parallel_backward(failing, IMAGES, LABELS, shards=6, workers=workers)
    assert bits(model) == before
    model.zero_grad()
    with pytest.raises(ArithmeticError, match="shard 2"):
        parallel_backward(failing, IMAGES, LABELS, shards=6, workers=workers)
    assert all(p.grad is None for p in model.parameters())
    parallel_backward(loss_of(model), IMAGES, LABELS)  # and the workers work on
    assert bits(model) == before


@pytest.mark.parametrize(
    ("batch", "settings", "message"),
    [
        ((IMAGES, LABELS[:5]), {}, r"one length, of at least 1; these have \[5, 13\]"),
        ((IMAGES[:0], LABELS[:0]), {}, "one length"),
        ((), {}, "one length"),
        ((IMAGES, LABELS), {"shards": 0}, "shards is 0; it must be at least 1"),
        ((IMAGES, LABELS), {"workers": 0}, "workers is 0; it must be at least 1"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch, settings, message):
    with pytest.raises(ValueError, match=message):
        parallel_backward(loss_of(model_of()), *batch, **settings)


def test_a_loss_that_is_no_single_number_or_not_recorded_is_refused():
    w = tv.tensor(np.ones(3), requires_grad=True)
    with pytest.raises(ValueError, match=r"a Tensor of one number, not Tensor \(3,\)"):
        parallel_backward(lambda x: w * 1.0, np.ones(3), shards=1)
    with pytest.raises(ValueError, match="a Tensor of one number, not float"):
        parallel_backward(lambda x: 1.0, np.ones(3))
    with pytest.raises(tv.TapeError, match="computed from nothing with requires_grad=True"):
        parallel_backward(lambda x: tv.tensor(1.0), np.ones(3))
    assert w.grad is None


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_a_senseless_number_of_workers_in_the_environment_is_told(monkeypatch, given):
    monkeypatch.setenv("TINYVIT_WORKERS", given)
    with pytest.raises(ValueError, match=r"TINYVIT_WORKERS is .* at least 1"):
        default_workers()


def test_the_environment_sets_the_number_of_workers(monkeypatch):
    monkeypatch.setenv("TINYVIT_WORKERS", "3")
    assert default_workers() == 3
    monkeypatch.delenv("TINYVIT_WORKERS")
    assert default_workers() >= 1


# --------------------------------------------------------------------------------------------------------- workers


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shards_products_take_one_blas_thread_and_the_others_come_back(workers):
    before, during = blas_threads(), []
    in_workers(lambda _: during.append(blas_threads()), range(3), workers)
    assert during == [{1}] * 3
    assert blas_threads() == before


def test_workers_see_the_callers_error_state_and_twins():
    with np.errstate(over="ignore"), tv.unfused():
        found = in_workers(
            lambda _: (np.geterr()["over"], tape.mode.twins_in is tv.ops, threading.current_thread().name), range(4), 2
        )
    assert {f[:2] for f in found} == {("ignore", True)}
    assert all(name.startswith("tinyvit-worker") for *_, name in found)
    assert in_workers(lambda _: tape.mode.twins_in, range(4), 2) == [None] * 4


def test_work_within_a_worker_is_done_there_and_nobody_waits_for_ever():
    found = in_workers(lambda i: in_workers(lambda j: 10 * i + j, range(3), 2), range(4), 2)
    assert found == [[10 * i + j for j in range(3)] for i in range(4)]


@given(st.integers(1, 200), st.integers(1, 40))
def test_rows_are_cut_into_even_shards_in_order(rows, shards):
    cuts = cut(rows, shards)
    assert len(cuts) == min(rows, shards)
    assert [i for c in cuts for i in range(c.start, c.stop)] == list(range(rows))
    sizes = [c.stop - c.start for c in cuts]
    assert max(sizes) - min(sizes) <= 1


def test_mapped_shards_record_nothing():
    w = tv.tensor(np.ones(2), requires_grad=True)
    parts = map_shards(lambda x: (x * w).requires_grad, np.ones((5, 2)), shards=3, workers=2)
    assert parts == [False] * 3


# ------------------------------------------------------------------------------------------------- where it is used


def test_a_run_is_the_same_to_the_last_bit_for_any_number_of_workers():
    def trained(workers):
        data = digits()
        loader = Loader(data.train, 48, mean=[0.5], std=[0.25], shuffle=True, drop_last=True)
        config = tv.ViTConfig(8, 4, channels=1, num_classes=10, dim=16, depth=2, num_heads=2, **DROPPING)
        model = tv.ViT(config, np.random.default_rng(0))
        optimizer = AdamW(model.named_parameters(), lr=1e-2)
        trainer = Trainer(model, optimizer, constant(1e-2), loader, epochs=1, clip_norm=0.5, shards=5, workers=workers)
        record = next(trainer.run())
        return record["loss"], {name: w.tobytes() for name, w in model.state_dict().items()}

    one = trained(1)
    assert trained(2) == one
    assert trained(4) == one


def test_evaluation_and_prediction_are_the_same_for_any_number_of_workers_and_batch():
    model, images = model_of(dim=96, **DROPPING).eval(), RNG.integers(0, 256, (137, 1, 8, 8), np.uint8)
    assert shards_for(model.config, 137) > 1
    expected = predict(model, images, [0.5], [0.25], workers=1)
    for workers in (2, 4):
        np.testing.assert_array_equal(predict(model, images, [0.5], [0.25], workers=workers), expected)
    alone = np.concatenate([predict(model, images[i : i + 1], [0.5], [0.25]) for i in range(len(images))])
    np.testing.assert_allclose(alone, expected, rtol=1e-4)
    data = digits()
    loader = Loader(data.validation, 100, mean=[0.5], std=[0.25])
    model = model_of(num_classes=10)
    assert evaluate(model, loader, workers=1) == evaluate(model, loader, workers=3)
    assert infer(model, IMAGES).shape == (13, 10)
    assert infer(model, IMAGES[:0]).shape == (0, 10)


# --------------------------------------------------------------------------------------------------------- the tape


def test_threads_record_and_sweep_on_tapes_of_their_own_onto_the_same_leaves():
    w = tv.tensor(np.ones(50), requires_grad=True)

    def chain(seed):
        x = np.random.default_rng(seed).standard_normal(50)
        y = w * x
        for _ in range(200):
            y = tv.ops.tanh(y) + w * 0.01
        return tv.grad((y * x).sum(), [w])[0].numpy()

    alone = [chain(seed) for seed in range(8)]
    together = in_workers(chain, range(8), 4)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_memory_is_kept_on_glibc_and_left_alone_where_the_user_says_so(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    keep_freed_memory.cache_clear()
    assert keep_freed_memory() is False
    monkeypatch.undo()
    monkeypatch.setenv("TINYVIT_MALLOC", "system")
    keep_freed_memory.cache_clear()
    assert keep_freed_memory() is False
    keep_freed_memory.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
def test_a_step_that_has_run_before_faults_no_pages():
    code = """
import resource, numpy as np
from tinyvit.training.parallel import in_workers
def work(_):
    for _ in range(4):
        a = np.ones(1 << 20); b = a + a; del a, b
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    in_workers(work, range(4), 2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 * 4 * 2 * 2048 / 20  # each array has 2,048 pages; without, all of them fault
