"""Each kernel beside the array code that it stands in for: the same values, gradients, NaNs, and nothing written to.

A kernel here is "used" if it computed the result, and "beside" means the same call with the kernels switched off.
"""

import gc
import itertools
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyvit as tv
from tinyvit.engine import kernels
from tinyvit.engine.ops import nn

pytest.importorskip("numba", reason="the kernels need Numba: pip install 'tinyvit[fast]'")

ops = tv.ops
DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}  # relative to the largest element
SIDES = st.sampled_from([1, 2, 3, 5, 8, 13, 17, 0])
ROWS = st.sampled_from([1, 2, 3, 63, 64, 65, 130, 0])  # on both sides of where a sum over rows is cut


@pytest.fixture(autouse=True)
def _switched_on():
    with kernels.switched(True):
        yield


# ------------------------------------------------------------------------------------------------------ what is drawn


def draw_linear(draw, array):
    rows = draw(st.one_of(st.tuples(), st.tuples(ROWS), st.tuples(SIDES, SIDES)))
    k, m = draw(SIDES), draw(SIDES)
    bias = draw(st.booleans())
    return [array(*rows, k), array(m, k), *[array(m)] * bias], {}


def draw_gelu(draw, array):
    return [3 * array(*draw(st.lists(ROWS, min_size=1, max_size=3)))], {}


def draw_layer_norm(draw, array):
    """Rows whose numbers lie apart; one number alone is its own mean, and its slope, 0, is rounding times 1/√eps."""
    rows, size = draw(st.one_of(st.tuples(), st.tuples(ROWS), st.tuples(SIDES, SIDES))), draw(ROWS.filter(bool))
    x = array(*rows, size) / 10
    x += np.arange(size, dtype=x.dtype)
    return [x, array(size), array(size)], {"eps": 0.5 if size == 1 else draw(st.sampled_from([1e-6, 1e-12, 0.5]))}


def draw_attention(draw, array):
    batch = draw(st.one_of(st.tuples(), st.tuples(SIDES), st.tuples(SIDES, SIDES)))
    n, v = draw(SIDES), draw(SIDES)
    m, k = draw(SIDES.filter(bool)), draw(SIDES.filter(bool))
    scale = draw(st.sampled_from([None, 0.7, -0.3]))
    return [array(*batch, n, k), array(*batch, m, k), array(*batch, m, v)], {"scale": scale}


def draw_heads(draw, array):
    heads = draw(st.sampled_from([1, 2, 3]))
    width = 3 * heads * draw(SIDES.filter(bool))
    return [array(draw(SIDES), draw(SIDES.filter(bool)), width)], {"num_heads": heads}


CASES = {
    ops.linear: draw_linear,
    ops.gelu: draw_gelu,
    ops.layer_norm: draw_layer_norm,
    ops.scaled_dot_product_attention: draw_attention,
    ops.multi_head_attention: draw_heads,
}
SMALL = {  # one use of each, of odd sizes
    ops.linear: ([(3, 5), (4, 5), (4,)], {}),
    ops.gelu: ([(3, 7)], {}),
    ops.layer_norm: ([(3, 5), (5,), (5,)], {}),
    ops.scaled_dot_product_attention: ([(2, 3, 5), (2, 4, 5), (2, 4, 3)], {}),
    ops.multi_head_attention: ([(2, 3, 18)], {"num_heads": 3}),
}
every_op = pytest.mark.parametrize("op", CASES, ids=lambda op: op.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


def arrays_of(op, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes, named = SMALL[op]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes], named


def tensor(array):
    """The array itself, not a copy, so that its layout is what the kernel meets."""
    x = tv.Tensor(array)
    x.requires_grad = array.dtype.kind == "f"
    return x


def computed(op, arrays, named, dress=lambda v: v, used=True, seed=1):
    """Value and gradients along a random cotangent, as arrays."""
    inputs = [tensor(a) for a in arrays]
    y = op(*inputs, **named)
    if used is not None:
        assert (y.node.kernel is not None) == (used and kernels._wanted)
    v = dress(np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype))
    wanted = [x for x in inputs if x.requires_grad]
    return [y.numpy(), *(g.numpy() for g in tv.grad(y, wanted, tv.Tensor(v)))]


def plainly(*arguments, **named):
    with kernels.switched(False):
        return computed(*arguments, **named)


def alike(found, expected, tolerance):
    """The same shapes, dtypes, NaNs and infinities, and numbers that differ by little beside the largest one."""
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        finite = b[np.isfinite(b)]
        atol = tolerance * (1 + np.abs(finite).max(initial=0.0))
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------- values and gradients


def test_every_kernel_of_an_op_is_tested_here():
    fused = {op.name for op in vars(nn).values() if isinstance(op, tv.Primitive) and op.fused}
    from tinyvit.engine.kernels import cpu

    tested = {op.name for op in CASES} | {"add_layer_norm"}  # of two results: it has a chapter of its own
    assert {name for name, kernel in cpu.KERNELS.items() if kernel.backward} == tested <= fused
    assert {name for name, kernel in cpu.KERNELS.items() if not kernel.backward} == {"adamw", "ema", "square_sum"}


@every_op
@every_dtype
@settings(max_examples=30)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_array_code(op, dtype, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    arrays, named = CASES[op](data.draw, lambda *shape: rng.standard_normal(shape).astype(dtype))
    empty = op is ops.multi_head_attention and not arrays[0].size
    alike(computed(op, arrays, named, used=not empty), plainly(op, arrays, named), TOLERANCE[dtype])


@every_op
@pytest.mark.parametrize("wanted", [*itertools.product([False, True], repeat=3)][1:])
def test_only_some_gradients_are_asked_for(op, wanted):
    arrays, named = arrays_of(op, np.float64)
    if not any(wanted[: len(arrays)]) or any(wanted[len(arrays) :]):
        pytest.skip("an op of fewer arguments")

    def some():
        inputs = [tensor(a) for a in arrays]
        y = op(*(x if w else x.detach() for x, w in zip(inputs, wanted, strict=False)), **named)
        assert (y.node.kernel is not None) == kernels._wanted
        (y * y).sum().backward()
        assert [x.grad is not None for x in inputs] == [*wanted[: len(inputs)]]
        return [x.grad.numpy() for x in inputs if x.grad is not None]

    found = some()
    with kernels.switched(False):
        alike(found, some(), 1e-12)


@every_op
def test_a_kernel_is_as_near_to_the_truth_as_the_array_code(op):
    """In float32, beside the same in float64: the polynomials for Φ and exp, and the order of the sums."""
    for seed in range(20):
        arrays, named = arrays_of(op, np.float32, seed)
        expected = plainly(op, [a.astype(np.float64) for a in arrays], named)
        alike([a.astype(np.float64) for a in computed(op, arrays, named)], expected, 2e-6)


@every_dtype
def test_gelu_is_right_over_its_whole_range(dtype):
    x = np.concatenate([np.linspace(-15, 15, 40_001), 10.0 ** np.arange(2, 30), -(10.0 ** np.arange(2, 30))])
    x = x.astype(dtype)
    expected = plainly(ops.gelu, [x.astype(np.float64)], {}, dress=np.ones_like)
    found = computed(ops.gelu, [x], {}, dress=np.ones_like)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6 if dtype == np.float32 else 1e-14)
    outside = np.abs(x) > 40
    assert found[0][outside].tolist() == np.maximum(x, 0)[outside].tolist()  # exactly, however large x is
    assert found[1][outside].tolist() == (x > 0)[outside].tolist()


@every_dtype
def test_scores_far_apart_do_not_overflow(dtype):
    """Warnings are errors here, and exp of the lower score is 0."""
    q = np.array([[[1e4], [-1e4]]], dtype)
    found = computed(ops.scaled_dot_product_attention, [q, q, q], {})
    assert found[0].tolist() == q.tolist()
    alike(found, plainly(ops.scaled_dot_product_attention, [q, q, q], {}), 1e-6)


@every_dtype
def test_a_sum_over_many_rows_loses_no_digits(dtype):
    """Beside math.fsum, as exact as NumPy's pairwise sum, though the loop goes row by row."""
    rng = np.random.default_rng(0)
    x, weight, bias = rng.uniform(1, 2, (40_000, 3)).astype(dtype), np.ones((2, 3), dtype), np.zeros(2, dtype)
    gradient = computed(ops.linear, [x, weight, bias], {}, dress=lambda v: np.abs(v) + 1)[3]
    v = np.abs(np.random.default_rng(1).standard_normal((40_000, 2)).astype(dtype)) + 1
    np.testing.assert_allclose(gradient, v.astype(np.float64).sum(0), rtol=3e-6 if dtype == np.float32 else 1e-14)


@every_op
@every_dtype
def test_second_derivatives_are_those_of_the_array_code(op, dtype):
    arrays, named = arrays_of(op, dtype)

    def twice():
        inputs = [tensor(a) for a in arrays]
        y = op(*inputs, **named)
        v = tensor(np.random.default_rng(1).standard_normal(y.shape).astype(dtype))
        gradients = tv.grad(y, inputs, v, create_graph=True)
        loss = sum((g * g * (1 + i)).sum() for i, g in enumerate(gradients))
        return [g.numpy() for g in [*gradients, *tv.grad(loss, [*inputs, v], allow_unused=True)] if g is not None]

    found = twice()
    with kernels.switched(False):
        alike(found, twice(), {np.float32: 2e-4, np.float64: 1e-11}[dtype])


@every_op
def test_gradcheck_of_both_orders(op):
    arrays, named = arrays_of(op, np.float64)
    f = lambda *xs: op(*xs, **named)
    tv.gradcheck(f, [tensor(a) for a in arrays])
    tv.gradgradcheck(f, [tensor(a) for a in arrays])


# ------------------------------------------------------------------------------------------------- NaN and infinities


@every_op
@every_dtype
@pytest.mark.parametrize("planted", [np.nan, np.inf, -np.inf])
def test_a_nan_or_an_infinity_anywhere_goes_where_the_array_code_lets_it_go(op, dtype, planted):
    arrays, named = arrays_of(op, dtype)
    with np.errstate(all="ignore"):
        shape = plainly(op, arrays, named)[0].shape
        for i in range(len(arrays) + 1):
            size = np.prod(shape) if i == len(arrays) else arrays[i].size
            for place in range(0, int(size), 3):
                given_ = [a.copy() for a in arrays]
                dress = lambda v: v

                def plant(v, place=place):
                    v.reshape(-1)[place] = planted
                    return v

                if i == len(arrays):
                    dress = plant
                else:
                    plant(given_[i])
                found, expected = computed(op, given_, named, dress), plainly(op, given_, named, dress)
                assert not all(np.isfinite(a).all() for a in found)
                if np.isnan(planted):
                    assert any(np.isnan(a).any() for a in found)
                alike(found, expected, TOLERANCE[dtype])


@every_dtype
def test_a_nan_in_a_long_row_is_not_lost_in_a_vector_of_numbers(dtype):
    """Wherever in the loop it stands: in its vectors, or in what is left over behind them."""
    for place in range(67):
        x = np.zeros((2, 67), dtype)
        x[0, place] = np.nan
        one = np.ones(67, dtype)
        y = computed(ops.layer_norm, [x, one, one], {})[0]
        assert np.isnan(y[0]).all()
        assert not np.isnan(y[1]).any()
        assert np.isnan(computed(ops.gelu, [x], {})[0]).nonzero()[1].tolist() == [place]
        scores = computed(ops.scaled_dot_product_attention, [np.ones((2, 1), dtype), x[:1].T.copy(), x.T.copy()], {})[0]
        assert np.isnan(scores).all()


# ------------------------------------------------------------------------------------------------ what suits a kernel


def backwards(a):
    return a[::-1].copy()[::-1]


def every_second(a):
    return a.repeat(2, axis=-1)[..., ::2]


def fortran(a):
    return np.asfortranarray(a) if a.ndim > 1 else every_second(a)


def repeated(a):
    return np.broadcast_to(a[:1], a.shape)


LAYOUTS = {f.__name__: f for f in (backwards, every_second, fortran, repeated)}


@every_op
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_left_to_the_array_code(op, dtype, layout):
    arrays, named = arrays_of(op, dtype)
    for i in range(len(arrays)):
        given_ = [LAYOUTS[layout](a) if i == j else a for j, a in enumerate(arrays)]
        if given_[i].flags.c_contiguous:
            continue
        contiguous = [np.array(a, order="C") for a in given_]
        alike(computed(op, given_, named, used=False), plainly(op, contiguous, named), TOLERANCE[dtype])


@every_op
@every_dtype
@pytest.mark.parametrize("layout", [*LAYOUTS, "broadcast"])
def test_a_cotangent_of_any_layout_is_read_as_it_is(op, dtype, layout):
    arrays, named = arrays_of(op, dtype)
    dress = LAYOUTS.get(layout, lambda v: np.broadcast_to(v.reshape(-1)[0], v.shape))
    dressed = lambda v: np.array(dress(v))  # the same numbers, contiguous
    found = computed(op, arrays, named, dress)
    for a, b in zip(found, computed(op, arrays, named, dressed), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-14)
    alike(found, plainly(op, arrays, named, dress), TOLERANCE[dtype])


@every_op
def test_other_dtypes_are_left_to_the_array_code(op):
    arrays, named = arrays_of(op, np.float64)
    same = lambda given_: zip(computed(op, given_, named, used=False), plainly(op, given_, named), strict=True)
    for dtype in (np.float16, np.dtype(np.float64).newbyteorder()):
        for a, b in same([a.astype(dtype) for a in arrays]):
            np.testing.assert_array_equal(a, b, strict=True)
    for i in range(len(arrays) if len(arrays) > 1 else 0):  # one of them narrower than the others
        for a, b in same([a.astype(np.float32) if i == j else a for j, a in enumerate(arrays)]):
            np.testing.assert_array_equal(a, b, strict=True)
    whole = [np.round(a).astype(np.int64) for a in arrays]
    found = op(*whole, **named)
    with kernels.switched(False):
        np.testing.assert_array_equal(found.numpy(), op(*whole, **named).numpy(), strict=True)
    for i in range(len(arrays)):  # one argument of integers among those of floating-point numbers
        if len(arrays) > 1:
            for a, b in same([w if i == j else a for j, (a, w) in enumerate(zip(arrays, whole, strict=True))]):
                np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize(
    ("op", "shapes", "named"),
    [
        (ops.gelu, [()], {}),
        (ops.gelu, [(2, 3)], {"approximate": "tanh"}),
        (ops.gelu, [(2, 3)], {"approximate": "quick"}),
        (ops.linear, [(2, 3), (4, 3), (1,)], {}),  # a bias that broadcasts
        (ops.linear, [(4, 3), (4, 3), (4, 4)], {}),
        (ops.linear, [(4, 3), (4, 3), (4, 1)], {}),
        (ops.linear, [(2, 3), (4, 3), ()], {}),
        (ops.scaled_dot_product_attention, [(2, 2, 3), (4, 3), (4, 2)], {}),  # batches that broadcast
        (ops.scaled_dot_product_attention, [(2, 3), (5, 4, 3), (5, 4, 2)], {}),
        (ops.scaled_dot_product_attention, [(2, 1, 2, 3), (1, 3, 4, 3), (4, 2)], {}),
        (ops.multi_head_attention, [(0, 2, 6)], {"num_heads": 2}),
    ],
    ids=str,
)
def test_other_arguments_are_left_to_the_array_code(op, shapes, named):
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in shapes]
    alike(computed(op, arrays, named, used=False), plainly(op, arrays, named), 1e-13)


@pytest.mark.parametrize(
    ("op", "shapes", "named", "sentence"),
    [
        (ops.linear, [(2, 3), (4, 2)], {}, "does not fit a weight"),
        (ops.linear, [(2, 3), (3,)], {}, "does not fit a weight"),
        (ops.layer_norm, [(2, 3), (3,), (2,)], {}, "differ in the last axis"),
        (ops.layer_norm, [(2, 3), (2, 3), (2, 3)], {}, "differ in the last axis"),
        (ops.scaled_dot_product_attention, [(2, 3), (2, 4), (2, 4)], {}, "differ in d_k"),
        (ops.scaled_dot_product_attention, [(2, 3), (2, 3), (4, 3)], {}, "the number of keys"),
        (ops.scaled_dot_product_attention, [(3,), (3,), (3,)], {}, "they must be"),
        (ops.multi_head_attention, [(2, 3, 8)], {"num_heads": 1}, r"must be \(B, N, 3·D\)"),
        (ops.multi_head_attention, [(2, 3, 6)], {"num_heads": 0}, r"must be \(B, N, 3·D\)"),
        (ops.multi_head_attention, [(3, 6)], {"num_heads": 1}, r"must be \(B, N, 3·D\)"),
        (ops.gelu, [(2, 3)], {"approximate": "exact"}, "gelu has the forms"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_the_ops_own_sentence(op, shapes, named, sentence):
    arrays = [np.zeros(shape) for shape in shapes]
    with pytest.raises(ValueError, match=sentence) as with_kernels:
        op(*arrays, **named)
    with kernels.switched(False), pytest.raises(ValueError, match=sentence) as without:
        op(*arrays, **named)
    assert str(with_kernels.value) == str(without.value)


@every_op
@every_dtype
def test_arrays_that_may_not_be_written_to_or_are_not_aligned_are_read(op, dtype, tmp_path):
    arrays, named = arrays_of(op, dtype)
    expected = plainly(op, arrays, named)
    for a in arrays:
        a.flags.writeable = False
    alike(computed(op, arrays, named), expected, TOLERANCE[dtype])
    shifted = [np.frombuffer(b"\0" + a.tobytes(), dtype, offset=1).reshape(a.shape) for a in arrays]
    assert not shifted[0].flags.aligned
    alike(computed(op, shifted, named, used=None), expected, TOLERANCE[dtype])
    mapped = []
    for i, a in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", a)
        mapped.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    alike(computed(op, mapped, named, used=None), expected, TOLERANCE[dtype])


# ----------------------------------------------------------------------------------------------- memory, and the tape


@every_op
@every_dtype
def test_nothing_that_was_given_is_written_to_and_a_second_sweep_gives_the_same(op, dtype):
    arrays, named = arrays_of(op, dtype)
    copies = [a.copy() for a in arrays]
    inputs = [tensor(a) for a in arrays]
    y = op(*inputs, **named)
    value, v = y.numpy().copy(), np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    v_copy = v.copy()
    first = [g.numpy() for g in tv.grad(y, inputs, tv.Tensor(v), retain_graph=True)]
    kept = [g.copy() for g in first]
    second = [g.numpy() for g in tv.grad(y, inputs, tv.Tensor(v))]
    for a, b in zip([*arrays, y.numpy(), v, *first, *second], [*copies, value, v_copy, *kept, *kept], strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    for g, x in itertools.product([*first, *second], [*arrays, y.numpy(), v]):
        assert not np.may_share_memory(g, x)


@every_op
def test_one_array_in_several_places_and_as_its_own_cotangent(op):
    arrays, named = arrays_of(op, np.float64)
    square = np.random.default_rng(3).standard_normal((5, 5))
    arrays = {
        ops.linear: [square, square, square[0].copy()],
        ops.layer_norm: [square[0].copy()] * 3,
        ops.scaled_dot_product_attention: [square] * 3,
    }.get(op, arrays)
    shares = {a.shape: a for a in arrays}
    dress = lambda v: shares.get(v.shape, v)
    expected = plainly(op, [a.copy() for a in arrays], named, lambda v: dress(v).copy())
    alike(computed(op, arrays, named, dress), expected, 1e-12)


@every_op
def test_what_a_kernel_keeps_is_freed_by_the_sweep_and_is_no_reference_cycle(op):
    arrays, named = arrays_of(op, np.float32)
    gc.disable()
    try:
        for sweep in (True, False):
            inputs = [tensor(a.copy()) for a in arrays]
            y = op(*inputs, **named)
            node = y.node
            alive = [weakref.ref(v) for v in (*node.kernel[1], *(x.data for x in inputs)) if isinstance(v, np.ndarray)]
            if sweep:
                y.backward(np.ones(y.shape))
                assert node.kernel is None
            del inputs, y, node
            assert [a() for a in alive if a() is not None] == []
    finally:
        gc.enable()


@every_op
def test_without_recording_nothing_is_kept(op):
    arrays, named = arrays_of(op, np.float32)
    with tv.no_grad():
        y = op(*map(tensor, arrays), **named)
    assert y.node is None
    np.testing.assert_array_equal(y.numpy(), computed(op, arrays, named)[0])
    y = op(*arrays, **named)  # and where nothing carries a gradient
    assert y.node is None


@every_op
def test_an_argument_overwritten_before_the_sweep_is_noticed(op):
    arrays, named = arrays_of(op, np.float64)
    for i in range(len(arrays)):
        inputs = [tensor(a.copy()) for a in arrays]
        y = op(*inputs, **named)
        assert y.node.kernel
        with tv.no_grad():
            inputs[i][...] = 7.0
        if op.name in ("linear", "layer_norm") and i == 2:
            y.backward(np.ones(y.shape))  # no gradient depends on the bias
        else:
            with pytest.raises(tv.TapeError, match="overwritten since"):
                y.backward(np.ones(y.shape))


def test_a_kernel_keeps_little_beside_what_the_rules_keep():
    """Each token's mean and scale, or the attention; of what the op was given it makes no copy."""
    beside = {}
    for op in CASES:
        arrays, named = arrays_of(op, np.float32)
        node = op(*map(tensor, arrays), **named).node
        others = [v for v in node.kernel[1] if isinstance(v, np.ndarray) and not any(v is a for a in arrays)]
        assert all(
            any(np.shares_memory(v, a) for a in arrays) for v in node.saved.values() if isinstance(v, np.ndarray)
        )
        beside[op.name] = sorted(v.shape for v in others)
    assert beside == {
        "linear": [],
        "gelu": [],
        "layer_norm": [(3,), (3,)],
        "scaled_dot_product_attention": [(2, 3, 4)],
        "multi_head_attention": [(2, 3, 3, 3)],
    }


def test_linear_keeps_what_the_gradients_that_are_asked_for_need():
    x, weight, bias = (np.ones(shape) for shape in [(3, 5), (4, 5), (4,)])
    for tracked, needed in [((True, False, False), {1}), ((False, True, False), {0}), ((False, False, True), set())]:
        inputs = [tensor(a.copy()) for a in (x, weight, bias)]
        y = ops.linear(*(t if on else t.detach() for t, on in zip(inputs, tracked, strict=True)))
        held = [a for a in (*y.node.saved.values(), *y.node.kernel[1]) if isinstance(a, np.ndarray)]
        places = {i for i, t in enumerate(inputs) if any(np.shares_memory(t.data, a) for a in held)}
        assert places == needed


# ------------------------------------------------------------------------------------------ an op with two results


def draw_added(rng, dtype, shape=(3, 5)):
    """x, branch, weight and bias; the numbers of a row lie apart."""
    x = (rng.standard_normal(shape) / 10 + np.arange(shape[-1])).astype(dtype)
    return [x, *((rng.standard_normal(s) / 10).astype(dtype) for s in (shape, shape[-1:], shape[-1:]))]


def apart(x, branch, weight, bias, eps=1e-6):
    s = x + branch
    return s, ops.layer_norm(s, weight, bias, eps)


def of_both(op, arrays, used=(0, 1), wanted=(1, 1, 1, 1), **named):
    """Both results, and the gradients of what is wanted along random cotangents of what is used."""
    inputs = [tensor(a) if on else tv.Tensor(a) for a, on in zip(arrays, wanted, strict=True)]
    results, rng = op(*inputs, **named), np.random.default_rng(1)
    along = [rng.standard_normal(y.shape).astype(y.dtype) for y in results]
    loss = sum((results[i] * along[i]).sum() for i in used)
    gradients = tv.grad(loss, [x for x in inputs if x.requires_grad])
    return [y.numpy() for y in (*results, *gradients)]


@every_dtype
@settings(max_examples=30)
@given(rows=st.one_of(st.just(()), st.tuples(ROWS), st.tuples(SIDES, SIDES)), size=ROWS.filter(lambda n: n > 1))
@pytest.mark.parametrize("used", [(0, 1), (1,)], ids=["both used", "the norm used"])
def test_a_sum_and_its_norm_have_the_bits_of_two_ops_and_the_numbers_of_the_array_code(dtype, used, rows, size):
    arrays = draw_added(np.random.default_rng(size), dtype, (*rows, size))
    found = of_both(ops.add_layer_norm, arrays, used)
    for a, b in zip(found, of_both(apart, arrays, used), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    with kernels.switched(False):
        alike(found, of_both(ops.add_layer_norm, arrays, used), TOLERANCE[dtype])


@pytest.mark.parametrize("on", [True, False], ids=["kernels", "array code"])
@pytest.mark.parametrize("used", [(0, 1), (0,), (1,)])
@pytest.mark.parametrize("wanted", [*itertools.product([0, 1], repeat=4)][1:])
def test_of_a_sum_and_its_norm_only_some_gradients_are_asked_for(on, used, wanted):
    arrays = draw_added(np.random.default_rng(0), np.float64)
    if used == (0,) and not any(wanted[:2]):
        pytest.skip("the sum depends on neither weight nor bias")
    expected = of_both(ops.add_layer_norm, arrays, used)
    places = [2 + i for i, on in enumerate(wanted) if on]
    with kernels.switched(on):
        found = of_both(ops.add_layer_norm, arrays, used, wanted)
    alike(found, [*expected[:2], *(expected[i] for i in places)], 1e-12)


def test_a_sum_is_kept_for_the_sweep_and_neither_its_terms_nor_its_norm():
    gc.disable()
    try:
        inputs = [tensor(a) for a in draw_added(np.random.default_rng(0), np.float32)]
        s, normed = ops.add_layer_norm(*inputs)
        node = s.node.parents[0]
        assert node is normed.node.parents[0]
        assert {name for name, value in node.saved.items() if isinstance(value, np.ndarray)} == {"y0", "weight"}
        assert node.saved["y0"] is s.data
        assert [kept.shape for kept in node.kernel[1]] == [(3,), (3,)]
        alive = [weakref.ref(a) for a in (s.data, normed.data, *node.kernel[1])]
        (s * normed).sum().backward()
        assert node.saved is node.kernel is None
        del s, normed, node
        assert [a() for a in alive if a() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("on", [True, False], ids=["kernels", "array code"])
@pytest.mark.parametrize(
    ("which", "read"), [(0, None), (1, None), (2, "argument 'weight'"), (3, None), (4, "result"), (5, None)]
)
def test_of_a_sum_and_its_norm_only_what_the_rule_reads_may_not_be_overwritten(on, which, read):
    inputs = [tensor(a.copy()) for a in draw_added(np.random.default_rng(0), np.float64)]
    with kernels.switched(on):
        results = ops.add_layer_norm(*inputs)
        loss = sum(y.sum() for y in results)  # which needs no value of either
        [*inputs, *results][which].detach()[...] = 7.0
        if read:
            with pytest.raises(
                tv.TapeError, match=f"`add_layer_norm` saved its {read} for the backward sweep, and it was"
            ):
                loss.backward()
        else:
            loss.backward()


def test_what_does_not_suit_the_kernel_of_a_sum_and_its_norm_is_left_to_the_array_code():
    x, branch, weight, bias = draw_added(np.random.default_rng(0), np.float64)
    for arrays in ([x.T[:3, :3].T, x[:, :3], *[weight[:3]] * 2], [x, branch.astype(np.float32), weight, bias]):
        s, _ = ops.add_layer_norm(*map(tensor, arrays))
        assert s.node.parents[0].kernel is None
    with tv.unfused():
        s, normed = ops.add_layer_norm(*map(tensor, (x, branch, weight, bias)))
    assert (s.node.op, normed.node.op) == (ops.add, ops.add)


# -------------------------------------------------------------------------------------------------------- the switch


@every_op
def test_the_switch_can_be_thrown_between_the_two_sweeps(op):
    arrays, named = arrays_of(op, np.float64)
    expected = plainly(op, arrays, named)[1:]
    for forward in (True, False):
        inputs = [tensor(a) for a in arrays]
        with kernels.switched(forward):
            y = op(*inputs, **named)
        v = np.random.default_rng(1).standard_normal(y.shape)
        with kernels.switched(not forward):
            alike([g.numpy() for g in tv.grad(y, inputs, tv.Tensor(v))], expected, 1e-12)


def test_the_switch_is_back_after_an_error_and_blocks_nest():
    assert kernels.in_use()
    with kernels.switched(False):
        assert not kernels.in_use()
        assert kernels.find("gelu", "cpu") is None
        with kernels.switched(True):
            assert kernels.find("gelu", "cpu")
        assert not kernels.in_use()
    with pytest.raises(ZeroDivisionError), kernels.switched(False):
        1 / 0  # noqa: B018
    assert kernels.in_use()
    assert kernels.find("gelu", "gpu") is kernels.find("sin", "cpu") is None


def test_unfused_records_elementary_ops_and_no_kernel():
    for op in CASES:
        arrays, named = arrays_of(op, np.float64)
        with tv.unfused():
            y = op(*map(tensor, arrays), **named)
        assert y.node.kernel is None
        assert y.node.op is not op


@pytest.mark.parametrize("name", ["gelu", "linear", "adamw", "ema"])
def test_an_op_of_a_users_own_that_is_named_like_a_kernel_is_computed_as_it_is_written(name):
    def forward(F, x, factor=3.0):
        return x * factor

    forward.__name__ = name
    op = tv.primitive(fused=True)(forward)
    op.gradients(x=lambda F, gy, factor: gy * factor)
    x = tensor(np.array([1.0, -2.0]))
    y = op(x)
    y.sum().backward()
    assert (y.tolist(), x.grad.tolist()) == ([3.0, -6.0], [3.0, 3.0])
    assert y.node.kernel is None


# ------------------------------------------------------------------------------------------------- processes, threads

USE = """
import sys
import numpy as np
import tinyvit as tv
from tinyvit.engine import kernels
print("imported", "numba" in sys.modules, "tinyvit.engine.kernels.cpu" in sys.modules)
x = tv.tensor(np.linspace(-2, 2, 96).reshape(2, 4, 12), requires_grad=True)
y = tv.ops.multi_head_attention(x, 2)
y = tv.ops.gelu(tv.ops.layer_norm(y, np.ones(4), np.zeros(4)))
loss = tv.ops.cross_entropy(tv.ops.linear(y, np.eye(3, 4), np.ones(3)), np.array([[0, 1, 2, 0]] * 2))
loss.backward()
print("computed", "numba" in sys.modules, kernels.available(), kernels.in_use())
print("numbers", round(loss.item(), 10), round(float(abs(x.grad.numpy()).sum()), 10))
"""
FIT = """
import numpy as np
import tinyvit as tv
from tinyvit.training import AdamW
model = tv.ViT(tv.ViTConfig(image_size=4, patch_size=2, channels=1, num_classes=2, dim=8, depth=1, num_heads=2))
optimizer = AdamW(model.named_parameters(), lr=1e-2)
tv.ops.cross_entropy(model(np.ones((2, 1, 4, 4), np.float32)), np.array([0, 1])).backward()
optimizer.step()
print("stepped")
"""


def python(code, **environment):
    """What a fresh interpreter prints, a dictionary by the first word of each line; warnings are errors."""
    clean = {name: value for name, value in os.environ.items() if name != "TINYVIT_KERNELS"} | environment
    done = subprocess.run([sys.executable, "-Werror", "-c", code], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in done.stdout.splitlines()}


@pytest.fixture(scope="module")
def with_kernels():
    return python(USE + FIT)


def test_numba_is_imported_by_the_first_fused_op_and_not_before(with_kernels):
    assert with_kernels["imported"] == "False False"
    assert with_kernels["computed"] == "True True True"
    assert with_kernels["stepped"] == ""


def test_the_environment_variable_switches_them_off_for_a_whole_process(with_kernels):
    found = python(USE + FIT, TINYVIT_KERNELS="off")
    assert found == with_kernels | {"computed": "False True False"}
    assert python(USE, TINYVIT_KERNELS="auto")["computed"] == "True True True"


def test_without_numba_everything_works(with_kernels):
    found = python('import sys\nsys.modules["numba"] = sys.modules["llvmlite"] = None\n' + USE + FIT)
    absent = {"imported": "True False", "computed": "True False False"}  # "numba" is there, as the name of nothing
    assert found == with_kernels | absent


def in_threads(count, work):
    """Run work(i) in threads that start together; what each returned."""
    results, barrier = [None] * count, threading.Barrier(count)

    def run(i):
        barrier.wait()
        results[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@every_op
@every_dtype
def test_two_threads_at_once_get_the_bits_of_one(op, dtype):
    """Each with arrays of its own, and both with the same: no kernel has memory that it shares."""
    shapes, named = SMALL[op]
    rng = np.random.default_rng(0)
    work = [[np.tile(rng.standard_normal(s), (40,) * (len(s) > 1) + (1,) * (len(s) - 1)).astype(dtype) for s in shapes]
            for _ in range(2)]  # fmt: skip
    if op is ops.linear:
        for arrays in work:
            arrays[1] = arrays[1][:4].copy()
    expected = [computed(op, arrays, named) for arrays in work]
    for own in (True, False):
        found = in_threads(2, lambda i, own=own: [computed(op, work[i * own], named) for _ in range(20)])
        for i, runs in enumerate(found):
            for a, b in itertools.product(runs, [expected[i * own]]):
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_array_equal(x, y, strict=True)


@pytest.mark.slow
def test_threads_that_need_a_kernel_before_it_is_compiled_wait_for_it(tmp_path):
    code = f"""
import threading
def work():
    exec(compile({USE!r}, "use", "exec"), {{}})
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
"""
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path))["numbers"] == python(USE)["numbers"]


# --------------------------------------------------------------------------------------- what is no op: flat buffers


@every_dtype
@settings(max_examples=30)
@given(size=st.sampled_from([1, 2, 7, 64, 1001]), step=st.integers(1, 1000), decay=st.sampled_from([0.0, 1e-3]))
def test_a_step_of_adamw_is_that_of_the_array_code(dtype, size, step, decay):
    from tinyvit.engine.backend import NUMPY
    from tinyvit.training import AdamW

    rng = np.random.default_rng(step)
    p, g, m = (rng.standard_normal(size).astype(dtype) for _ in range(3))
    v = rng.uniform(0, 2, size).astype(dtype)
    optimizer = AdamW([tv.tensor(p, requires_grad=True)], lr=1e-2)
    both = []
    for on in (True, False):
        arrays = [a.copy() for a in (p, g, m, v)]
        with kernels.switched(on):
            optimizer.update(NUMPY, arrays[0], arrays[1], arrays[2:], 1e-2, step, decay)
        np.testing.assert_array_equal(arrays[1], g)
        both.append(arrays)
    assert not np.array_equal(both[0][0], p)
    for a, b in zip(*both, strict=True):
        tolerance = 2e-6 if dtype == np.float32 else 1e-14
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@every_dtype
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (100_001,), (3, 5)])
def test_square_sum_and_ema_are_those_of_the_array_code(dtype, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    total = kernels.find("square_sum", "cpu").forward(x)
    assert total == pytest.approx(np.square(x.astype(np.float64)).sum(), rel=1e-12)
    assert total.dtype == np.float64
    shadow, before = np.ones(shape, dtype), x.copy()
    assert kernels.find("ema", "cpu").forward(shadow, x, 0.25)
    np.testing.assert_allclose(shadow, 0.75 + 0.25 * x, rtol=1e-6 if dtype == np.float32 else 1e-14, atol=1e-7)
    np.testing.assert_array_equal(x, before)


@every_dtype
def test_flat_buffers_of_other_layouts_and_dtypes_are_left_to_the_array_code(dtype):
    x = np.ones(6, dtype)
    for other in (x[::2], x.astype(np.float16), x.astype(int), np.asarray(x[0])):
        assert kernels.find("square_sum", "cpu").forward(other) is None
        assert kernels.find("ema", "cpu").forward(other, other, 0.5) is None
        assert kernels.find("adamw", "cpu").forward(other, other, other, other, 0, 0.1, 0.9, 0.99, 1e-8, 1, 1) is None


def test_a_nan_or_an_infinity_in_flat_buffers_stays(recwarn):
    for planted in (np.nan, np.inf):
        x = np.ones(37, np.float32)
        x[30] = planted
        total = kernels.find("square_sum", "cpu").forward(x)
        np.testing.assert_equal(float(total), planted)
        p, m, v = np.ones(37, np.float32), np.zeros(37, np.float32), np.zeros(37, np.float32)
        kernels.find("adamw", "cpu").forward(p, x, m, v, 0.0, 0.1, 0.9, 0.99, 1e-8, 0.1, 0.01)
        assert np.isnan(p).nonzero()[0].tolist() == [30]
        kernels.find("ema", "cpu").forward(shadow := np.ones(37, np.float32), x, 0.5)
        assert (~np.isfinite(shadow)).nonzero()[0].tolist() == [30]
    assert not recwarn.list
