"""Optimizers, gradient clipping, schedules and the moving average, against PyTorch and closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyvit as tv
from tinyvit.engine import kernels
from tinyvit.layers import Parameter
from tinyvit.training.ema import EMA
from tinyvit.training.optim import OPTIMIZERS, SGD, Adam, AdamW, clip_grad_norm
from tinyvit.training.schedules import SCHEDULES, constant, cosine, step_decay

SHAPES = {"embed.weight": (5, 3), "embed.bias": (5,), "pos": (1, 4, 5), "scale": ()}
STEPS = 50


def arrays(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype=dtype) for name, shape in SHAPES.items()}


def leaves(seed, dtype=np.float64):
    return {name: tv.tensor(a, requires_grad=True) for name, a in arrays(seed, dtype).items()}


def set_gradients(parameters, seed):
    for name, g in arrays(seed).items():
        p = parameters[name]
        p.grad = tv.tensor(g.astype(p.dtype))


def run(optimizer, parameters, steps):
    for step in steps:
        set_gradients(parameters, 1000 + step)
        optimizer.step()


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        np.testing.assert_array_equal(value, right[key], strict=True, err_msg=key)


# -------------------------------------------------------------------------------------------- against PyTorch

CASES = {
    "sgd": (SGD, "SGD", {"lr": 0.1}),
    "sgd-decay": (SGD, "SGD", {"lr": 0.1, "weight_decay": 0.05}),
    "sgd-momentum": (SGD, "SGD", {"lr": 0.1, "momentum": 0.9}),
    "sgd-nesterov": (SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    "adam": (Adam, "Adam", {"lr": 0.01}),
    "adam-decay": (Adam, "Adam", {"lr": 0.01, "weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}),
    "adamw": (AdamW, "AdamW", {"lr": 0.01, "weight_decay": 0.05}),
    "adamw-defaults": (AdamW, "AdamW", {}),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_agree_with_pytorch(case, dtype):
    torch = pytest.importorskip("torch")
    ours, theirs, settings = CASES[case]
    mine = leaves(0, dtype)
    optimizer = ours(mine.items(), **settings)
    yours = {name: torch.tensor(a, requires_grad=True) for name, a in arrays(0, dtype).items()}
    decayed = [p for p in yours.values() if p.ndim > 1]
    plain = [p for p in yours.values() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    reference = getattr(torch.optim, theirs)(groups, **settings)

    lr = cosine(optimizer.lr, total=STEPS, warmup=5)
    for step in range(STEPS):
        optimizer.lr = lr(step)
        for group in reference.param_groups:
            group["lr"] = lr(step)
        set_gradients(mine, step)
        for name, p in mine.items():
            yours[name].grad = torch.tensor(p.grad.numpy())
        if step % 7 == 3:  # a parameter without a gradient is left out, and so is its step count
            mine["pos"].grad = yours["pos"].grad = None
        optimizer.step()
        reference.step()

    close = {"rtol": 1e-12, "atol": 1e-14} if dtype == np.float64 else {"rtol": 2e-5, "atol": 2e-6}
    for name, p in mine.items():
        assert p.dtype == dtype
        np.testing.assert_allclose(p.numpy(), yours[name].detach().numpy(), **close, err_msg=name)


@pytest.mark.parametrize("on", [True, False], ids=["kernels", "no kernels"])
@pytest.mark.parametrize("case", CASES)
def test_step_sizes_of_their_own_agree_with_pytorchs_groups(case, on):
    torch = pytest.importorskip("torch")
    ours, theirs, settings = CASES[case]
    scales = {"embed.weight": 0.25, "embed.bias": 0.25, "pos": 0.0}
    mine = leaves(0)
    optimizer = ours(mine.items(), **settings, lr_scales=scales)
    yours = {name: torch.tensor(a, requires_grad=True) for name, a in arrays(0).items()}
    groups = [{"params": [p], **({} if p.ndim > 1 else {"weight_decay": 0.0})} for p in yours.values()]
    reference = getattr(torch.optim, theirs)(groups, **settings)
    lr = cosine(optimizer.lr, total=STEPS, warmup=5)
    with kernels.switched(on):
        for step in range(STEPS):
            optimizer.lr = lr(step)
            for name, group in zip(yours, reference.param_groups, strict=True):
                group["lr"] = lr(step) * scales.get(name, 1.0)
            set_gradients(mine, step)
            for name, p in mine.items():
                yours[name].grad = torch.tensor(p.grad.numpy())
            optimizer.step()
            reference.step()
    for name, p in mine.items():
        np.testing.assert_allclose(p.numpy(), yours[name].detach().numpy(), rtol=1e-12, atol=1e-14, err_msg=name)
    assert_same({"pos": mine["pos"].numpy()}, {"pos": arrays(0)["pos"]})
    assert optimizer.state_dict().keys() == ours(leaves(0).items(), **settings).state_dict().keys()


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_clipping_agrees_with_pytorch(max_norm, dtype):
    torch = pytest.importorskip("torch")
    mine = leaves(0, dtype)
    set_gradients(mine, 1)
    mine["pos"].grad = None
    yours = [torch.tensor(p.numpy(), requires_grad=True) for p in mine.values()]
    for p, q in zip(mine.values(), yours, strict=True):
        q.grad = None if p.grad is None else torch.tensor(p.grad.numpy())

    norm = clip_grad_norm(mine.items(), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(yours, max_norm)
    rtol = 1e-12 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(float(norm), float(expected), rtol=rtol)
    for p, q in zip(mine.values(), yours, strict=True):
        if p.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=rtol)


# ------------------------------------------------------------------------------------------------- optimizers


def test_weight_decay_follows_the_parameters_mark_and_else_the_number_of_axes():
    def after_one_step(p):
        p.grad = tv.tensor(np.zeros(p.shape))
        AdamW([p], lr=0.5, weight_decay=0.5).step()
        return p.numpy().flat[0]

    marked, unmarked = Parameter(np.ones((2, 2))), Parameter(np.ones((2, 2)))
    marked.decay, unmarked.decay = True, False
    assert after_one_step(marked) == 0.75
    assert after_one_step(unmarked) == 1.0
    assert after_one_step(tv.tensor(np.ones((2, 2)), requires_grad=True)) == 0.75
    assert after_one_step(tv.tensor(np.ones(4), requires_grad=True)) == 1.0


@pytest.mark.parametrize("case", CASES)
def test_a_saved_state_resumes_bit_for_bit(case):
    kind, _, settings = CASES[case]
    whole = leaves(0, np.float32)
    run(kind(whole.items(), **settings), whole, range(20))

    first = leaves(0, np.float32)
    before = kind(first.items(), **settings)
    run(before, first, range(8))
    saved = before.state_dict()
    second = {name: tv.tensor(p.numpy(), requires_grad=True) for name, p in first.items()}
    after = kind(second.items(), **settings)
    after.load_state_dict(saved)
    assert_same(after.state_dict(), saved)
    run(before, first, range(8, 9))  # the snapshot is a copy: this must not reach it
    run(after, second, range(8, 20))
    for name, p in whole.items():
        np.testing.assert_array_equal(second[name].numpy(), p.numpy(), err_msg=name)


def test_state_keys_carry_the_names_or_else_the_positions():
    parameters = leaves(0)
    assert set(SGD(parameters.values(), lr=0.1).state_dict()) == {"step"}
    state = SGD(parameters.values(), lr=0.1, momentum=0.9).state_dict()
    assert set(state) == {"step", *(f"momentum.{i}" for i in range(4))}
    state = AdamW(parameters.items()).state_dict()
    assert set(state) == {"step", *(f"{s}.{name}" for s in ("exp_avg", "exp_avg_sq") for name in SHAPES)}
    assert state["step"].shape == (4,)
    assert all(isinstance(value, np.ndarray) for value in state.values())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    parameters = leaves(0)
    optimizer = Adam(parameters.items())
    run(optimizer, parameters, range(3))
    before = optimizer.state_dict()
    bad = Adam(parameters.items()).state_dict()
    del bad["exp_avg.pos"]
    bad["exp_avg.posit"] = np.zeros(3)
    bad["exp_avg_sq.embed.bias"] = np.zeros(6)
    with pytest.raises(ValueError, match="does not fit this Adam") as error:
        optimizer.load_state_dict(bad)
    faults = str(error.value)
    assert "missing 'exp_avg.pos'; unexpected 'exp_avg.posit'" in faults
    assert "'exp_avg_sq.embed.bias' has shape (6,), expected (5,)" in faults
    with pytest.raises(ValueError, match="and 5 more"):
        optimizer.load_state_dict({"0": np.zeros(1)})
    with pytest.raises(ValueError, match="could not convert"):
        optimizer.load_state_dict({**before, "exp_avg_sq.scale": np.array("word")})
    assert_same(optimizer.state_dict(), before)


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_a_step_writes_in_place_leaves_gradients_alone_and_tells_the_tape(kind):
    parameters = leaves(0)
    optimizer = kind(parameters.items(), lr=0.1, weight_decay=0.1)
    set_gradients(parameters, 1)
    parameters["pos"].grad = None
    data = {name: p.data for name, p in parameters.items()}
    before = {name: a.copy() for name, a in data.items()}
    w = parameters["embed.weight"]
    loss = (w * w).sum()
    optimizer.step()
    for name, p in parameters.items():
        assert p.data is data[name]
        assert np.array_equal(p.data, before[name]) == (name == "pos")
        if p.grad is not None:
            np.testing.assert_array_equal(p.grad.numpy(), arrays(1)[name])
    with pytest.raises(tv.TapeError, match="overwritten"):
        loss.backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in parameters.values())


def test_a_frozen_parameter_is_left_alone():
    frozen, free = tv.tensor([1.0]), tv.tensor([1.0], requires_grad=True)
    optimizer = SGD([frozen, free], lr=0.5)
    (frozen * free).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert (frozen.item(), free.item()) == (1.0, 0.5)


def test_strided_parameters_and_gradients():
    base = np.arange(12.0).reshape(3, 4)
    for kind in OPTIMIZERS.values():
        strided, dense = tv.tensor(base.T, requires_grad=True), tv.tensor(base.T.copy(), requires_grad=True)
        strided.data = base.copy().T
        for p in (strided, dense):
            p.grad = tv.tensor(np.ones((4, 3)))
            kind([p], lr=0.1, weight_decay=0.1).step()
        np.testing.assert_array_equal(strided.numpy(), dense.numpy())


def test_the_step_size_may_be_a_numpy_number_without_changing_a_dtype():
    parameters = leaves(0, np.float32)
    optimizer = AdamW(parameters.items(), lr=np.float64(0.1))
    run(optimizer, parameters, range(2))
    assert {p.dtype for p in parameters.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SGD, {"lr": -0.1}),
        (SGD, {"lr": math.nan}),
        (SGD, {"lr": 0.1, "momentum": -1}),
        (SGD, {"lr": 0.1, "nesterov": True}),
        (SGD, {"lr": 0.1, "weight_decay": -1}),
        (Adam, {"betas": (1.0, 0.9)}),
        (Adam, {"betas": (0.9, -0.1)}),
        (Adam, {"eps": -1e-8}),
        (AdamW, {"weight_decay": math.nan}),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, settings):
    with pytest.raises(ValueError, match="it must be"):
        kind([tv.tensor([1.0], requires_grad=True)], **settings)


def test_no_parameters_or_one_twice_are_refused():
    w = tv.tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match="no parameters"):
        SGD([], lr=0.1)
    with pytest.raises(ValueError, match="twice"):
        SGD([w, w], lr=0.1)
    with pytest.raises(ValueError, match="twice"):
        SGD([("w", w), ("w", tv.tensor([1.0], requires_grad=True))], lr=0.1)


def test_a_model_converted_behind_the_optimizers_back_is_noticed():
    w = tv.tensor(np.ones(2), requires_grad=True)
    optimizer = Adam([("w", w)])
    w.rebind(np.ones(2, np.float32))
    w.grad = tv.tensor(np.ones(2, np.float32))
    with pytest.raises(RuntimeError, match=r"'w' has changed .* model\.to"):
        optimizer.step()


# --------------------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("off", [None, 0, math.inf])
def test_clipping_switched_off_still_measures(off):
    parameters = leaves(0)
    set_gradients(parameters, 1)
    norm = clip_grad_norm(parameters.values(), off)
    np.testing.assert_allclose(norm, math.sqrt(sum(np.sum(g**2) for g in arrays(1).values())), rtol=1e-14)
    for name, g in arrays(1).items():
        np.testing.assert_array_equal(parameters[name].grad.numpy(), g)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_norm_that_is_not_finite_is_returned_and_the_gradients_kept(value):
    a, b = (tv.tensor(np.ones(2, np.float32), requires_grad=True) for _ in range(2))
    a.grad, b.grad = tv.tensor(np.float32([value, 1])), tv.tensor(np.float32([3, 4]))
    assert not np.isfinite(clip_grad_norm([a, b], 1.0))
    np.testing.assert_array_equal(b.grad.numpy(), [3, 4])


def test_the_norm_of_large_and_of_half_precision_gradients():
    w = tv.tensor(np.ones(2, np.float16), requires_grad=True)
    w.grad = tv.tensor(np.float16([3e4, 4e4]))
    np.testing.assert_allclose(clip_grad_norm([w], 1.0), 5e4, rtol=1e-3)
    assert w.grad.dtype == np.float16
    np.testing.assert_allclose(w.grad.numpy(), [0.6, 0.8], rtol=2e-3)
    w = tv.tensor(np.ones(2, np.float32), requires_grad=True)
    w.grad = tv.tensor(np.float32([1e30, 0]))  # its square is beyond float32
    np.testing.assert_allclose(clip_grad_norm([w], 1.0), 1e30, rtol=1e-6)
    np.testing.assert_allclose(w.grad.numpy(), [1, 0], rtol=1e-6)


def test_clipping_without_gradients_and_with_a_bad_limit():
    w = tv.tensor([1.0], requires_grad=True)
    assert clip_grad_norm([w], 1.0) == 0.0
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm"):
            clip_grad_norm([w], bad)


# -------------------------------------------------------------------------------------------------- schedules


def test_schedule_edges():
    lr = cosine(1.0, total=100, warmup=10, floor=0.01)
    assert lr(0) == 0.1
    assert lr(9) == lr(10) == 1.0
    assert lr(55) == pytest.approx(0.505)
    assert 0.01 < lr(99) < 0.0105
    assert lr(100) == lr(10**9) == 0.01
    assert cosine(1.0, total=1)(0) == 1.0

    lr = step_decay(1.0, [10, 20], gamma=0.5, warmup=10)
    assert [lr(s) for s in (0, 9, 10, 19, 20, 99)] == [0.1, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert step_decay(1.0, [])(7) == 1.0
    assert [constant(0.3)(s) for s in (0, 10**6)] == [0.3, 0.3]
    assert set(SCHEDULES) == {"constant", "cosine", "step"}


@given(
    peak=st.floats(1e-6, 10),
    warmup=st.integers(0, 50),
    length=st.integers(1, 200),
    share=st.floats(0, 1),
    gamma=st.floats(0.01, 1),
)
def test_schedules_rise_to_the_peak_and_then_fall_within_their_bounds(peak, warmup, length, share, gamma):
    floor, total = share * peak, warmup + length
    milestones = sorted({warmup + length // 3, warmup + length // 2})
    for lr, lowest in [
        (constant(peak, warmup), peak),
        (cosine(peak, total, warmup, floor), floor),
        (step_decay(peak, milestones, gamma, warmup), peak * gamma**2),
    ]:
        values = [lr(step) for step in range(total + 3)]
        assert all(isinstance(value, float) for value in values)
        rising, falling = values[:warmup], values[warmup:]
        assert all(0 < a < b <= peak for a, b in pairwise(rising))
        if warmup:
            assert values[0] == pytest.approx(peak / warmup)
            assert values[warmup - 1] == peak
        assert all(a >= b for a, b in pairwise(falling))
        assert max(values) <= peak * (1 + 1e-15)
        assert min(falling) >= lowest * (1 - 1e-15)


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant(-1.0),
        lambda: constant(math.inf),
        lambda: constant(1.0, warmup=-1),
        lambda: cosine(1.0, total=10, warmup=10),
        lambda: cosine(1.0, total=10, floor=2.0),
        lambda: cosine(1.0, total=10, floor=-0.1),
        lambda: step_decay(1.0, [20, 10]),
        lambda: step_decay(1.0, [5], warmup=10),
        lambda: step_decay(1.0, [5], gamma=0.0),
        lambda: constant(1.0)(-1),
    ],
)
def test_settings_that_make_no_schedule_are_refused(make):
    with pytest.raises(ValueError, match="it must be"):
        make()


# --------------------------------------------------------------------------------------------- moving average


def averaged(decay, updates, start=1.0, target=3.0):
    """A weight that jumps from `start` to `target`: the gap shrinks by d at each update."""
    gap = start - target
    for t in range(updates):
        gap *= min(decay, (1 + t) / (10 + t))
    return target + gap


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_has_its_closed_form(decay):
    w = tv.tensor(np.ones((2, 2)), requires_grad=True)
    ema = EMA([("w", w)], decay)
    w.data[...] = 3.0
    for updates in range(1, 30):
        ema.update()
        np.testing.assert_allclose(ema.state_dict()["shadow.w"], averaged(decay, updates), rtol=1e-13)


def test_averages_are_swapped_in_and_the_originals_come_back_even_after_an_error():
    parameters = leaves(0)
    ema = EMA(parameters.items(), 0.9)
    run(SGD(parameters.items(), lr=0.1), parameters, range(2))
    ema.update()
    originals = {name: p.data for name, p in parameters.items()}
    values = {name: a.copy() for name, a in originals.items()}
    gradients = {name: p.grad for name, p in parameters.items()}
    shadows = ema.state_dict()

    def interrupted_evaluation():
        with ema.applied():
            for name, p in parameters.items():
                np.testing.assert_array_equal(p.numpy(), shadows[f"shadow.{name}"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_evaluation()
    for name, p in parameters.items():
        assert p.data is originals[name]
        np.testing.assert_array_equal(p.data, values[name])
        assert p.grad is gradients[name]
    with ema.applied():  # usable again, and not twice at once
        for forbidden in (ema.update, lambda: ema.applied().__enter__()):
            with pytest.raises(RuntimeError, match="inside applied"):
                forbidden()
    assert_same(ema.state_dict(), shadows)


def test_the_tape_notices_a_swap():
    w = tv.tensor(np.ones(2), requires_grad=True)
    ema = EMA([("w", w)])
    with ema.applied():
        loss = (w * w).sum()
    with pytest.raises(tv.TapeError, match="overwritten"):
        loss.backward()


def test_an_average_resumes_bit_for_bit_and_refuses_what_does_not_fit():
    parameters = leaves(0, np.float32)
    ema = EMA(parameters.items())
    run(SGD(parameters.items(), lr=0.1), parameters, range(1))
    ema.update()
    saved = ema.state_dict()
    again = EMA(parameters.items())
    again.load_state_dict(saved)
    for average in (ema, again):
        average.update()
    assert_same(again.state_dict(), ema.state_dict())
    with pytest.raises(ValueError, match="missing 'updates'"):
        again.load_state_dict({})
    assert_same(again.state_dict(), ema.state_dict())
    assert saved["updates"] == 1


def test_half_precision_weights_are_averaged_in_float32():
    w = tv.tensor(np.ones(1, np.float16), requires_grad=True)
    ema = EMA([("w", w)], decay=0.9999)
    w.data[...] = 2.0
    for _ in range(200):
        ema.update()
    with ema.applied():
        assert w.dtype == np.float16
    assert ema.state_dict()["shadow.w"] == pytest.approx(averaged(0.9999, 200, 1.0, 2.0), rel=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA([("w", tv.tensor([1.0], requires_grad=True))], decay)


# --------------------------------------------------------------------------------------------------- flat buffers


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
@pytest.mark.parametrize("on", [True, False], ids=["kernels", "no kernels"])
def test_gradients_in_the_flat_buffer_and_elsewhere_give_the_same_bits(kind, on):
    found = []
    with kernels.switched(on):
        for side_by_side in (True, False):
            parameters = leaves(0, np.float32)
            optimizer = kind(parameters.items(), lr=0.1, weight_decay=0.1)
            for step in range(3):
                gradients = arrays(step)
                for name, p in parameters.items():
                    p.grad = None
                    if side_by_side:
                        p.backward(gradients[name].astype(np.float32))
                        assert np.shares_memory(p.grad.data, optimizer.gradients[0])
                    else:
                        p.grad = tv.tensor(gradients[name].astype(np.float32))
                optimizer.step()
            found.append({name: p.numpy().tobytes() for name, p in parameters.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("scales", "runs"),
    [(None, 2), (dict.fromkeys(SHAPES, 1.0), 2), (dict.fromkeys(SHAPES, 0.5), 2), ({"pos": 0.5}, 3)],
    ids=["none", "ones", "halves", "one other"],
)
def test_neighbours_of_one_step_size_are_updated_in_one_run_to_the_same_bits(scales, runs):
    found = []
    for kind in (AdamW, Alone):
        parameters, calls = leaves(0, np.float32), []
        optimizer = kind(parameters.items(), lr=0.1, weight_decay=0.1, lr_scales=scales)
        update = optimizer.update
        optimizer.update = lambda *given, update=update, calls=calls: calls.append(1) or update(*given)
        for name, p in parameters.items():
            p.backward(arrays(1)[name].astype(np.float32))
        optimizer.step()
        found.append({name: p.numpy() for name, p in parameters.items()})
        assert len(calls) == (runs if kind is AdamW else len(SHAPES))
    assert_same(*found)
    if scales is None or set(scales.values()) == {1.0}:
        expected = leaves(0, np.float32)
        run(AdamW(expected.items(), lr=0.1, weight_decay=0.1), expected, [-999])  # the gradients of arrays(1)
        assert_same(found[0], {name: p.numpy() for name, p in expected.items()})


class Alone(AdamW):
    """Each parameter in a run of its own."""

    def _runs(self, group):
        data, spans = self._data[group], self._data[group].spans
        runs = super()._runs(group)
        pieces = [run._replace(span=s) for run in runs for s in spans if run.span.start <= s.start < run.span.stop]
        assert sum(s.stop - s.start for s in spans) == data.whole.size
        return pieces


def test_a_step_size_for_a_stranger_or_below_zero_is_refused():
    w = tv.tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match="lr_scales names 'v', which is not among the parameters"):
        AdamW([("w", w)], lr_scales={"v": 0.5})
    for bad in (-0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"lr_scales\['w'\] is .*; it must be"):
            SGD([("w", w)], lr=1.0, lr_scales={"w": bad})


def test_parameters_of_several_dtypes_are_stepped_each_in_its_own():
    parameters = {f"{name}{d}": p for d in (np.float32, np.float64) for name, p in leaves(0, d).items()}
    optimizer = AdamW(parameters.items(), lr=0.1)
    assert [g.dtype for g in optimizer.gradients] == [np.float32, np.float64]
    for p in parameters.values():
        p.backward(np.ones(p.shape, p.dtype))
    optimizer.step()
    for name, p in leaves(0, np.float64).items():
        expected = parameters[f"{name}{np.float64}"].numpy()
        np.testing.assert_allclose(parameters[f"{name}{np.float32}"].numpy(), expected, rtol=1e-5)
        assert not np.array_equal(expected, p.numpy())


def test_an_array_put_in_a_parameters_place_is_stepped_and_taken_into_the_buffer():
    w = tv.tensor(np.ones(3, np.float32), requires_grad=True)
    optimizer = SGD([w], lr=0.5)
    w.data = np.full(3, 7.0, np.float32)
    w.backward(np.ones(3, np.float32))
    optimizer.step()
    np.testing.assert_array_equal(w.numpy(), [6.5, 6.5, 6.5])


def test_the_norm_of_many_gradients_does_not_depend_on_where_they_lie():
    parameters = leaves(0, np.float32)
    AdamW(parameters.items())
    for name, p in parameters.items():
        p.backward(arrays(1)[name].astype(np.float32))
    expected = math.sqrt(sum((p.grad.numpy().astype(float) ** 2).sum() for p in parameters.values()))
    assert clip_grad_norm(parameters.values(), 0.5) == pytest.approx(expected, rel=1e-6)
    after = math.sqrt(sum((p.grad.numpy().astype(float) ** 2).sum() for p in parameters.values()))
    assert after == pytest.approx(0.5, rel=1e-5)
    strided = tv.tensor(np.ones((4, 3)), requires_grad=True)
    strided.grad = tv.tensor(np.arange(12.0).reshape(3, 4).T)
    clip_grad_norm([strided], 1.0)
    assert np.linalg.norm(strided.grad.numpy()) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_a_step_without_any_gradient_changes_nothing(kind):
    parameters = leaves(0)
    optimizer = kind(parameters.items(), lr=0.1)
    before = optimizer.state_dict()
    optimizer.step()
    assert_same(optimizer.state_dict(), before)
    for name, p in leaves(0).items():
        np.testing.assert_array_equal(parameters[name].numpy(), p.numpy())
