"""Every op: its values against NumPy and SciPy, extreme values, kinks, operators, promotion, errors.

That the gradients are slopes, for every op, order, dtype and layout, is the audit's (tests/test_audit.py).
"""

import gc
import math
import operator
import warnings
import weakref

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import REFERENCE

import tinyvit as tv
from tinyvit.engine.backend import namespace_on
from tinyvit.engine.ops import nn
from tinyvit.study.audit.samples import NOT_DIFFERENTIABLE, SAMPLES

ops = tv.ops
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)


def leaf(values, device="cpu", dtype=np.float64):
    return tv.tensor(np.asarray(values, dtype=dtype), device=device, requires_grad=True)


def close(actual, expected, tolerance=1e-12):
    """Same shape and, relative to elements of order 1, the same values."""
    actual = actual.numpy() if isinstance(actual, tv.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, strict=np.ndim(expected) > 0)
    assert np.shape(actual) == np.shape(expected)


def cotangents(outputs, dtype=np.float64):
    rng = np.random.default_rng(1)
    return [tv.tensor(rng.standard_normal(y.shape).astype(dtype), device=y.device) for y in outputs]


# --------------------------------------------------------------------------------------------------------- all samples


@every_sample
def test_values_are_those_of_the_reference(sample, device):
    expected = sample(*sample.arrays(), F=REFERENCE)
    for y, reference in zip(sample(*sample.tensors(device)), expected, strict=True):
        assert y.device == device
        close(y, reference)


@every_sample
def test_inputs_and_cotangents_are_only_read(sample):
    inputs = sample.tensors()
    outputs = sample(*inputs)
    vs = cotangents(outputs)
    for create_graph in (True, False):
        tv.grad(outputs, [x for x in inputs if x.requires_grad], vs, create_graph=create_graph)
    for actual, expected in zip(inputs + vs, sample.arrays() + [v.numpy() for v in cotangents(outputs)], strict=True):
        np.testing.assert_array_equal(actual.numpy(), expected)


@every_sample
def test_without_recording_the_values_are_the_same_and_nothing_is_kept(sample):
    inputs = sample.tensors()
    recorded = sample(*inputs)
    with tv.no_grad():
        plain = sample(*inputs)
    for y, r in zip(plain, recorded, strict=True):
        assert not y.requires_grad or y is inputs[0]  # dropout that drops nothing does nothing
        np.testing.assert_array_equal(y.numpy(), r.numpy())


@every_sample
def test_a_recorded_graph_is_no_reference_cycle(sample):
    """Without the garbage collector's help, every array of a graph that nobody swept is freed when it is dropped."""
    gc.disable()
    try:
        inputs = sample.tensors()
        outputs = sample(*inputs)
        alive = [weakref.ref(x.data) for x in inputs + outputs]
        nodes = [y.node for y in outputs]
        kept = [v for n in nodes for v in (*(n.saved or {}).values(), *(n.kernel[1] if n.kernel else ()))]
        alive += [weakref.ref(v) for v in kept if isinstance(v, np.ndarray)]
        del inputs, outputs, nodes, kept
        assert [a() for a in alive if a() is not None] == []
    finally:
        gc.enable()


FUSED = {op.name for op in vars(nn).values() if isinstance(op, tv.Primitive) and op.fused}


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.op in FUSED], ids=str)
def test_a_fused_op_unfused_records_elementary_ops_with_the_same_value_and_gradient(sample, device):
    inputs = sample.tensors(device)
    results = sample(*inputs)
    with tv.unfused():
        twins = sample(*inputs)
    vs, wanted = cotangents(results), [x for x in inputs if x.requires_grad]
    gradients = [tv.grad(ys, wanted, vs, retain_graph=True) for ys in (results, twins)]
    for found, expected in [*zip(results, twins, strict=True), *zip(*gradients, strict=True)]:
        close(found, expected.numpy())
    for y, twin in zip(results, twins, strict=True):
        assert names_behind(y.node) & FUSED
        assert not names_behind(twin.node) & FUSED


def names_behind(node):
    """The ops that a result was computed by; a leaf has none."""
    return {node.op and node.op.name}.union(*(names_behind(parent) for parent in node.parents if parent))


def test_attention_weights_are_rows_of_probabilities():
    rng = np.random.default_rng(0)
    weights = nn.attention_weights(
        ops, tv.tensor(rng.standard_normal((2, 3, 4))), tv.tensor(rng.standard_normal((5, 4)))
    )
    assert weights.shape == (2, 3, 5)
    close(weights.sum(-1), np.ones((2, 3)))


# ---------------------------------------------------------------------------------------- what has no gradient

NUMBERS, OTHERS = np.array([[1.0, -2.0, 3.0], [0.0, 5.0, 5.0]]), np.array([1.0, 0.0, 5.0])


@pytest.mark.parametrize("name", sorted(NOT_DIFFERENTIABLE))
def test_steps_and_counts_equal_numpys_and_carry_no_gradient(name, device):
    function = getattr(np, name)
    arguments = [NUMBERS, OTHERS][: 1 if name in ("argmax", "isfinite", "invert") else 2]
    bits = name in ("bitwise_and", "bitwise_or", "invert")
    for kind in (bool, np.int64) if bits else (np.float64,):
        arrays = [a.astype(kind) for a in arguments]
        y = getattr(ops, name)(*(tv.tensor(a, device=device, requires_grad=not bits) for a in arrays))
        assert not y.requires_grad
        assert y.dtype == function(*arrays).dtype
        np.testing.assert_array_equal(y.numpy(), function(*arrays))


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_argmax_takes_an_axis_and_the_first_of_equals(axis):
    np.testing.assert_array_equal(ops.argmax(leaf(NUMBERS), axis).numpy(), np.argmax(NUMBERS, axis))
    np.testing.assert_array_equal(leaf(NUMBERS).argmax(axis).numpy(), np.argmax(NUMBERS, axis))


def test_isfinite_tells_nan_and_infinities_apart_from_numbers():
    assert ops.isfinite(leaf([0.0, np.inf, -np.inf, np.nan])).tolist() == [True, False, False, False]


# --------------------------------------------------------------------------------------------------------- kinks


@pytest.mark.parametrize(
    ("f", "x", "expected"),
    [
        (ops.relu, [-1.0, 0.0, 2.0], [0, 0, 1]),
        (ops.abs, [-1.0, 0.0, 2.0], [-1, 0, 1]),
        (ops.sign, [-1.0, 0.0, 2.0], [0, 0, 0]),
        (lambda x: ops.clip(x, -1, 2), [-2.0, -1.0, 0.0, 2.0, 3.0], [0, 1, 1, 1, 0]),
        (lambda x: ops.clip(x, None, 0), [-1.0, 0.0, 1.0], [1, 1, 0]),
        (lambda x: ops.clip(x, 0, None), [-1.0, 0.0, 1.0], [0, 1, 1]),
        (lambda x: ops.clip(x), [-1.0, 0.0, 1.0], [1, 1, 1]),
        (lambda x: ops.maximum(x, 1.0), [0.0, 1.0, 2.0], [0, 0.5, 1]),
        (lambda x: ops.minimum(1.0, x), [0.0, 1.0, 2.0], [1, 0.5, 0]),
        (ops.max, [3.0, 1.0, 3.0, 3.0], [1 / 3, 0, 1 / 3, 1 / 3]),
        (ops.min, [3.0, 1.0, 1.0, 3.0], [0, 0.5, 0.5, 0]),
        (lambda x: ops.max(x.reshape(2, 2), axis=0), [1.0, 5.0, 1.0, 2.0], [0.5, 1, 0.5, 0]),
        (lambda x: ops.power(x, 0), [0.0, 2.0], [0, 0]),
        (lambda x: ops.power(x, 1), [0.0, 2.0], [1, 1]),
        (lambda x: ops.power(x, 2), [0.0, -3.0], [0, -6]),
        (lambda x: ops.power(0.0, x), [1.0, 2.0], [0, 0]),
    ],
)
def test_at_kinks_the_slope_is_the_one_the_rule_states(f, x, expected, device):
    x = leaf(x, device)
    [g] = tv.grad(f(x).sum(), [x])
    close(g, np.array(expected, float))


@pytest.mark.parametrize("op", [ops.maximum, ops.minimum])
def test_equal_arguments_of_maximum_and_minimum_get_half_the_gradient_each(op, device):
    a, b = leaf([1.0, 2.0], device), leaf([1.0, 2.0], device)
    for g in tv.grad(op(a, b), [a, b], np.array([4.0, 6.0])):
        close(g, [2.0, 3.0])


def test_the_gradient_of_an_exponent_is_zero_where_the_base_is_zero():
    a, b = leaf([0.0, 2.0]), leaf([3.0, 3.0])
    [gb] = tv.grad((a**b).sum(), [b])
    close(gb, [0.0, 8 * math.log(2)])


def test_clip_refuses_a_gradient_for_its_bounds():
    with pytest.raises(tv.TapeError, match="`clip` has no backward rule for its argument 'min'"):
        ops.clip(leaf([1.0]), leaf([0.0]), None)


# ------------------------------------------------------------------------------------------------- extreme values


def test_erf_agrees_with_scipy_to_the_last_digits(device):
    x = np.concatenate([np.linspace(-7, 7, 4001), [-1.0, 1.0, np.nextafter(1, 0), 1e-300, -1e-9, 0.0]])
    y = ops.erf(tv.tensor(x, device=device)).numpy()
    np.testing.assert_allclose(y, scipy.special.erf(x), rtol=4.5e-16, atol=0)
    single = ops.erf(tv.tensor(x.astype(np.float32), device=device)).numpy()
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, scipy.special.erf(x.astype(np.float32).astype(np.float64)), rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_erf_keeps_nan_infinities_and_the_sign_of_zero(dtype, device):
    y = ops.erf(tv.tensor(np.array([np.nan, np.inf, -np.inf, -0.0, 0.0], dtype), device=device)).numpy()
    np.testing.assert_array_equal(y, np.array([np.nan, 1, -1, -0.0, 0.0]))
    assert np.signbit(y[3:]).tolist() == [True, False]
    assert y.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_scores_do_not_overflow(dtype, device):
    """Warnings are errors here, so an overflow that cancels later is found too."""
    x = tv.tensor(np.array([[1e4, 0.0, -1e4]], dtype), device=device, requires_grad=True)
    close(ops.softmax(x), np.array([[1, 0, 0]], dtype))
    close(ops.log_softmax(x), np.array([[0, -1e4, -2e4]], dtype))
    close(ops.logsumexp(x, axis=-1), np.array([1e4], dtype))
    close(ops.sigmoid(x), np.array([[1, 0.5, 0]], dtype))
    close(ops.cross_entropy(x, np.array([2])), np.array(2e4, dtype))
    close(tv.grad(ops.cross_entropy(x, np.array([2])), [x])[0], np.array([[1, 0, -1]], dtype))
    close(ops.scaled_dot_product_attention(x, x, x), x.numpy())
    for form in ("none", "tanh", "quick"):
        close(ops.gelu(x / 100, approximate=form), np.array([[100, 0, 0]], dtype))


def test_logsumexp_knows_minus_infinity():
    x = leaf([[-np.inf, 0.0], [-np.inf, -np.inf]])
    close(ops.logsumexp(x, axis=1), [0.0, -np.inf])
    close(tv.grad(ops.logsumexp(x, axis=1)[:1].sum(), [x])[0], [[0.0, 1.0], [0.0, 0.0]])


def test_a_masked_score_gets_no_attention_and_no_gradient():
    x = leaf([[0.0, -np.inf, 0.0]])
    close(ops.softmax(x), [[0.5, 0.0, 0.5]])
    close(tv.grad(ops.softmax(x), [x], np.array([[1.0, 1.0, 0.0]]))[0], [[0.25, 0.0, -0.25]])


# --------------------------------------------------------------------------------------------------------- operators

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]
A, B = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[4.0, 2.0], [1.0, 0.5]])


@pytest.mark.parametrize("operation", ARITHMETIC + COMPARISONS, ids=lambda f: f.__name__)
def test_an_operator_with_an_array_on_either_side_gives_a_tensor(operation, device):
    a, b = tv.tensor(A, device=device), tv.tensor(B, device=device)
    for y in (operation(a, b), operation(a.data, b), operation(a, b.data)):
        assert isinstance(y, tv.Tensor)
        close(y, operation(A, B))


@pytest.mark.parametrize("operation", [operator.and_, operator.or_], ids=lambda f: f.__name__)
def test_logical_operators_take_an_array_on_either_side(operation, device):
    p, q = tv.tensor(A > 2, device=device), tv.tensor(B > 1, device=device)
    for y in (operation(p, q), operation(p, q.data), operation(p.data, q)):
        assert isinstance(y, tv.Tensor)
        np.testing.assert_array_equal(y.numpy(), operation(A > 2, B > 1))


@pytest.mark.parametrize("operation", ARITHMETIC[:-1] + COMPARISONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("number", [2, 2.0, np.float64(2), np.float32(2)], ids=repr)
def test_an_operator_takes_a_number_on_either_side(operation, number, device):
    a = tv.tensor(A, device=device)
    for y, expected in [(operation(a, number), operation(A, number)), (operation(number, a), operation(number, A))]:
        assert isinstance(y, tv.Tensor)
        close(y, expected)


def test_unary_operators_and_methods_are_the_ops_of_that_name():
    x = leaf([[-1.0, 2.0, 0.5]])
    close(-x, [[1.0, -2.0, -0.5]])
    close(abs(x), [[1.0, 2.0, 0.5]])
    close(x.T, [[-1.0], [2.0], [0.5]])
    assert (~(x > 0)).tolist() == [[True, False, False]]
    for actual, expected in [
        (x.sum(1, keepdims=True), [[1.5]]),
        (x.mean(), 0.5),
        (x.var(1, 1), np.var(x.numpy(), axis=1, ddof=1)),
        (x.max(axis=1), [2.0]),
        (x.min(), -1.0),
        (x.reshape(3, 1), [[-1.0], [2.0], [0.5]]),
        (x.reshape((3,)), [-1.0, 2.0, 0.5]),
        (x.reshape(-1), [-1.0, 2.0, 0.5]),
        (x.transpose(), x.numpy().T),
        (x.transpose(1, 0), x.numpy().T),
        (x.transpose((0, 1)), x.numpy()),
        (x.swapaxes(0, -1), x.numpy().T),
        (x.squeeze(0), [-1.0, 2.0, 0.5]),
    ]:
        close(actual, np.asarray(expected))
        assert actual.requires_grad


def test_augmented_assignment_makes_a_new_tensor_and_leaves_the_old_one():
    x = leaf([1.0])
    y = before = x * 1
    y += 1
    y *= 3
    y -= [2]
    y /= 2
    assert (x.tolist(), before.tolist(), y.tolist()) == ([1.0], [1.0], [2.0])
    assert tv.grad(y, [x])[0].tolist() == [1.5]


def test_augmented_assignment_steps_a_leaf_in_place_inside_no_grad_and_is_an_error_outside():
    w = same = leaf([1.0, 2.0])
    (w * w).sum().backward()
    with tv.no_grad():
        w -= 0.5 * w.grad
    assert w is same
    assert w.tolist() == [0.0, 0.0]
    assert w.requires_grad
    with pytest.raises(tv.TapeError, match=r"inside `with tv\.no_grad\(\):`"):
        w -= 1


def test_a_single_number_is_formatted_like_one():
    assert f"{leaf([1.0]).sum():.3f}" == "1.000"
    assert f"{tv.tensor([1.0, 2.0])}" == str(tv.tensor([1.0, 2.0]))


def test_a_name_that_only_numpy_has_is_an_error_that_says_what_a_rule_may_use():
    with pytest.raises(AttributeError, match=r"tinyvit\.ops has no 'sinh'. A backward rule may use only"):
        ops.sinh(1.0)


# ------------------------------------------------------------------------------------------------- type promotion


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("operation", ARITHMETIC[:-1], ids=lambda f: f.__name__)
def test_python_numbers_are_weak(operation, dtype, device):
    x = tv.tensor(np.array([1.0, 2.0], dtype), device=device, requires_grad=True)
    for y in (operation(x, 2.0), operation(2.0, x), operation(x, 3), operation(3, x)):
        assert y.dtype == dtype
        assert tv.grad(y.sum(), [x])[0].dtype == dtype


@pytest.mark.parametrize(
    "other", [np.float64(2), np.float64([2.0]), np.int32([2]), np.float16(2), np.bool_(True)], ids=repr
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_scalars_and_arrays_promote_as_in_numpy_and_the_gradient_comes_back_in_the_inputs_dtype(
    dtype, other, device
):
    x = leaf([1.0, 2.0], device, dtype)
    other_there = namespace_on(device).asarray(other) if np.ndim(other) else other
    y = x * other_there
    assert y.dtype == np.result_type(dtype, other)
    assert tv.grad(y.sum(), [x])[0].dtype == dtype


def test_each_operand_gets_the_gradient_in_its_own_dtype(device):
    x, y = leaf([1.5], device, np.float32), leaf([2.5], device, np.float64)
    z = x * y + x / y
    assert z.dtype == np.float64
    gx, gy = tv.grad(z, [x, y], create_graph=True)
    assert (gx.dtype, gy.dtype) == (np.float32, np.float64)
    gxx, gyx = tv.grad(gx * 1.0, [x, y], allow_unused=True)
    assert gxx is None
    assert gyx.dtype == np.float64


def test_astype_gives_the_gradient_back_in_the_dtype_it_came_from(device):
    x = leaf([1.0, 2.0], device, np.float32)
    y = x.astype(np.float16)
    assert y.dtype == np.float16
    assert (y * y).dtype == np.float16
    [g] = tv.grad((y * y).sum(), [x])
    assert g.dtype == np.float32
    close(g, np.array([2, 4], np.float32))
    assert x.astype("float32") is x


def test_integers_from_a_float_tensor_carry_no_gradient():
    y = leaf([1.7]).astype(np.int64)
    assert y.tolist() == [1]
    assert not y.requires_grad


@pytest.mark.gpu
def test_a_tensor_goes_to_the_gpu_and_its_gradient_comes_back():
    if not tv.gpu_available():
        pytest.skip("CuPy or a GPU is missing")
    for home, away in [("cpu", "gpu"), ("gpu", "cpu"), ("cpu", "auto")]:
        x = leaf([1.0, 2.0], home)
        y = x.to(away)
        assert y.device == ("gpu" if away == "auto" else away)
        [g] = tv.grad((y * y).sum(), [x])
        assert g.device == home
        close(g, [2.0, 4.0])
        [h] = tv.grad(tv.grad((x.to(away) ** 3).sum(), [x], create_graph=True)[0].sum(), [x])
        assert h.device == home
        close(h, [6.0, 12.0])
    with pytest.raises(tv.BackendError, match="'cpu' and on 'gpu' meet in one operation"):
        leaf([1.0]) + leaf([1.0], "gpu")


# ------------------------------------------------------------------------------------------ drawn shapes and indices


def adjoint_of_broadcast(gradient, shape):
    """Sum a gradient into `shape` by following each element to where broadcasting took it from."""
    total = np.zeros(shape)
    source = np.broadcast_to(np.arange(total.size).reshape(shape), gradient.shape)
    np.add.at(total.reshape(-1), source, gradient)
    return total


BINARY = {
    "add": lambda g, a, b: (g, g),
    "subtract": lambda g, a, b: (g, -g),
    "multiply": lambda g, a, b: (g * b, g * a),
    "divide": lambda g, a, b: (g / b, -g * a / b**2),
    "power": lambda g, a, b: (g * b * a ** (b - 1), g * a**b * np.log(a)),
    "maximum": lambda g, a, b: (g * (a > b), g * (a < b)),
}


@given(
    hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3), st.sampled_from(sorted(BINARY))
)
def test_binary_ops_of_any_broadcastable_shapes(drawn, name):
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(0.5, 2, shape) for shape in drawn.input_shapes)
    v = rng.standard_normal(drawn.result_shape)
    x, y = leaf(a), leaf(b)
    z = getattr(ops, name)(x, y)
    close(z, getattr(np, name)(a, b))
    for leaf_, g in zip((x, y), BINARY[name](v, a, b), strict=True):
        close(tv.grad(getattr(ops, name)(x, y), [leaf_], v)[0], adjoint_of_broadcast(g, leaf_.shape))


@pytest.mark.parametrize("values", [(), (1,), (2,), (2, 1), (1, 2), (2, 2)])
def test_values_that_broadcast_are_added_at_every_index_that_is_named_twice(values, device):
    rng = np.random.default_rng(0)
    for _ in range(50):
        index, given = rng.integers(0, 3, (2, 2)), rng.standard_normal(values)
        expected = np.zeros(3)
        for place, value in zip(index.ravel(), np.broadcast_to(given, (2, 2)).ravel(), strict=True):
            expected[place] += value
        x = leaf(given, device)
        found = ops.scatter_add(x, index, (3,))
        close(found, expected)
        (found * tv.tensor([1.0, 10.0, 100.0], device=device)).sum().backward()
        slopes = 10.0**index
        for axis, n in enumerate((1,) * (2 - len(values)) + values):
            slopes = slopes.sum(axis=axis, keepdims=True) if n == 1 else slopes
        close(x.grad, slopes.reshape(values))


@given(st.data())
def test_reductions_over_any_axes(data):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=3))
    axes = (
        st.none()
        if not shape
        else st.none() | st.integers(-len(shape), len(shape) - 1) | hnp.valid_tuple_axes(len(shape))
    )
    axis, keepdims = data.draw(axes), data.draw(st.booleans())
    a = np.random.default_rng(0).permutation(math.prod(shape)).reshape(shape) * 0.3
    count = np.sum(np.ones(shape), axis=axis, keepdims=True)
    for name, slope in {
        "sum": lambda: np.ones(shape),
        "mean": lambda: 1 / count,
        "var": lambda: 2 * (a - a.mean(axis=axis, keepdims=True)) / count,
        "max": lambda: a == a.max(axis=axis, keepdims=True),
        "min": lambda: a == a.min(axis=axis, keepdims=True),
        "logsumexp": lambda: np.exp(a) / np.exp(a).sum(axis=axis, keepdims=True),
    }.items():
        x = leaf(a)
        y = getattr(ops, name)(x, axis=axis, keepdims=keepdims)
        reference = getattr(np, name, lambda a, **axes: np.log(np.exp(a).sum(**axes)))  # which is logsumexp
        close(y, reference(a, axis=axis, keepdims=keepdims))
        v = np.random.default_rng(1).standard_normal(y.shape)
        spread = v.reshape(np.sum(a, axis=axis, keepdims=True).shape)
        close(tv.grad(y, [x], v)[0], slope() * spread * np.ones(shape))


@given(st.data())
def test_any_index_reads_what_numpy_reads_and_gives_the_gradient_back_there(data):
    shape = data.draw(hnp.array_shapes(max_dims=4, max_side=4))
    index = data.draw(
        hnp.basic_indices(shape, allow_newaxis=True)
        | hnp.integer_array_indices(shape)
        | hnp.arrays(bool, shape)
        | st.lists(st.integers(-shape[0], shape[0] - 1), min_size=1)
    )
    a = np.random.default_rng(0).standard_normal(shape)
    x = leaf(a)
    y = x[index]
    close(y, a[index])
    v = np.random.default_rng(1).standard_normal(y.shape)
    expected = np.zeros(shape)
    np.add.at(expected, index, v)
    close(tv.grad(y, [x], v)[0], expected)


@given(st.data())
def test_any_order_of_axes_is_undone_in_the_gradient(data):
    shape = data.draw(hnp.array_shapes(max_dims=5, max_side=3))
    axes = tuple(axis - len(shape) * data.draw(st.booleans()) for axis in data.draw(st.permutations(range(len(shape)))))
    x, a = leaf(np.zeros(shape)), np.random.default_rng(0).standard_normal(shape)
    y = ops.transpose(x, axes)
    assert y.shape == np.transpose(a, axes).shape
    close(tv.grad(y, [x], np.transpose(a, axes))[0], a)


@given(hnp.mutually_broadcastable_shapes(signature="(n,k),(k,m)->(n,m)", max_dims=2, min_side=0, max_side=3))
def test_matrix_products_of_any_broadcastable_stacks(drawn):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape) for shape in drawn.input_shapes)
    v = rng.standard_normal(drawn.result_shape)
    x, y = leaf(a), leaf(b)
    close(x @ y, a @ b)
    ga, gb = tv.grad(x @ y, [x, y], v)
    close(ga, adjoint_of_broadcast(np.einsum("...nm,...km->...nk", v, b), a.shape))
    close(gb, adjoint_of_broadcast(np.einsum("...nk,...nm->...km", a, v), b.shape))


@given(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), st.data())
def test_reshape_and_broadcast_undo_each_other_in_the_gradient(shape, data):
    wide = data.draw(hnp.broadcastable_shapes(shape, min_dims=len(shape), max_dims=4, max_side=3).filter(
        lambda s: np.broadcast_shapes(s, shape) == s))  # fmt: skip
    x = leaf(np.random.default_rng(0).standard_normal(shape))
    v = np.random.default_rng(1).standard_normal(math.prod(wide))
    y = ops.broadcast_to(x, wide).reshape(-1)
    close(y, np.broadcast_to(x.numpy(), wide).reshape(-1))
    close(tv.grad(y, [x], v)[0], adjoint_of_broadcast(v.reshape(wide), shape))


# ------------------------------------------------------------------------------------------------- chance


@pytest.mark.parametrize(("op", "shape"), [(ops.dropout, (400, 100)), (ops.drop_path, (40_000, 1))])
def test_dropout_keeps_the_expectation_and_is_the_same_after_the_same_seed(op, shape):
    x = tv.tensor(np.ones(shape, np.float32), requires_grad=True)
    tv.seed(7)
    y = op(x, 0.25)
    assert np.unique(y.numpy()).tolist() == pytest.approx([0, 4 / 3])
    assert abs(y.mean().item() - 1) < 0.02  # five standard deviations are 0.0145
    close(tv.grad(y.sum(), [x])[0], y.numpy())
    tv.seed(7)
    np.testing.assert_array_equal(op(x, 0.25).numpy(), y.numpy())
    assert (op(x, 0.25).numpy() != y.numpy()).any()


def test_drop_path_drops_whole_samples():
    y = ops.drop_path(tv.tensor(np.ones((50, 2, 3), np.float32)), 0.5).numpy()
    assert sorted({row.tobytes() for row in y}) == sorted({np.full((2, 3), v, np.float32).tobytes() for v in (0, 2)})


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
@pytest.mark.parametrize("op", [ops.dropout, ops.drop_path])
def test_a_probability_outside_its_range_is_refused(op, p):
    with pytest.raises(ValueError, match=rf"the probability {p} is not in \[0, 1\)"):
        op(leaf([1.0]), p)


# ------------------------------------------------------------------------------------------------- wrong arguments


ROW, COLUMN = leaf([[1.0, 2.0]]), leaf([[1.0], [2.0]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.linear(ROW, COLUMN), ValueError, r"x of shape \(1, 2\).*weight of shape \(2, 1\)"),
        (lambda: ops.layer_norm(ROW, ROW[0, :1], ROW[0]), ValueError, "differ in the last axis"),
        (lambda: ops.add_layer_norm(ROW, ROW, ROW[0, :1], ROW[0]), ValueError, "differ in the last axis"),
        (lambda: ops.add_layer_norm(ROW, ROW[0], ROW[0], ROW[0]), ValueError, r"x \(1, 2\) and branch \(2,\) differ"),
        (
            lambda: ops.scaled_dot_product_attention(ROW, COLUMN, COLUMN),
            ValueError,
            "differ in d_k or in the number of",
        ),
        (lambda: ops.scaled_dot_product_attention(ROW, ROW, COLUMN), ValueError, "differ in d_k or in the number of"),
        (lambda: ops.multi_head_attention(ROW, 1), ValueError, r"qkv has the shape \(1, 2\); it must be \(B, N, 3·D\)"),
        (lambda: ops.multi_head_attention(np.ones((1, 2, 6)), 4), ValueError, "D a multiple of the 4 heads"),
        (lambda: ops.multi_head_attention(np.ones((1, 2, 6)), 0), ValueError, "D a multiple of the 0 heads"),
        (lambda: ops.cross_entropy(ROW, np.array([2])), ValueError, "class numbers 2 … 2 for 2 classes"),
        (lambda: ops.cross_entropy(ROW, np.array([-1])), ValueError, "class numbers -1 … -1"),
        (lambda: ops.cross_entropy(ROW, np.array([0, 1])), ValueError, r"class numbers of shape \(2,\)"),
        (lambda: ops.cross_entropy(ROW, np.ones((1, 3))), ValueError, r"distributions of shape \(1, 3\)"),
        (lambda: ops.cross_entropy(ROW, np.array([True])), TypeError, "not bool"),
        (lambda: ops.cross_entropy(ROW, np.array([0]), reduction="avg"), ValueError, "not 'avg'"),
        (lambda: ops.gelu(ROW, approximate="erf"), ValueError, "'none'.*'tanh' and 'quick', not 'erf'"),
        (lambda: ops.matmul(leaf(2.0), ROW), ValueError, "multiply by a number with"),
        (lambda: ROW @ 2.0, ValueError, "multiply by a number with"),
        (lambda: ROW @ ROW, ValueError, "size 1 is different from 2"),
        (lambda: ops.einsum("ij,jk", ROW, COLUMN), ValueError, "an arrow"),
        (lambda: ops.einsum("ii->i", ROW), ValueError, "no letter twice"),
        (lambda: ops.einsum("...i->i", ROW), ValueError, "no ellipsis"),
        (lambda: leaf([1.0, 2.0]) + leaf([1.0, 2.0, 3.0]), ValueError, "broadcast"),
        (lambda: ROW[3], IndexError, "out of bounds"),
        (lambda: ops.add(ROW), TypeError, "missing a required argument: 'b'"),
        (lambda: ops.add(ROW, 1, 2), TypeError, "too many positional arguments"),
        (lambda: ops.sum(ROW, dim=0), TypeError, "unexpected keyword argument 'dim'"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_ops_take_plain_arrays_and_numbers_and_give_tensors_off_the_tape():
    for y, expected in [
        (ops.exp(np.array([0.0, 1.0])), np.exp([0.0, 1.0])),
        (ops.add(1.0, 2.0), 3.0),
        (ops.sqrt(4.0), 2.0),
    ]:
        assert isinstance(y, tv.Tensor)
        assert not y.requires_grad
        close(y, np.asarray(expected))


def test_numpy_warns_of_invalid_values_as_it_always_does():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ops.log(leaf([-1.0]))
    assert [w.category for w in caught] == [RuntimeWarning]


def test_float16_scores_and_slopes_do_not_overflow():
    q = leaf(np.full((2, 64), 40.0), dtype=np.float16)
    assert np.isfinite(ops.scaled_dot_product_attention(q, q, q).numpy()).all()
    x = leaf([-1000.0, 1000.0], dtype=np.float16)
    ops.gelu(x, "tanh").backward(np.ones(2))
    assert x.grad.tolist() == [0.0, 1.0]
    with np.errstate(all="ignore"):  # on the way to a slope of 0
        assert tv.grad(tv.grad(ops.gelu(x, "tanh").sum(), [x], create_graph=True)[0].sum(), [x])[0].tolist() == [0, 0]
    y = ops.layer_norm(leaf([300.0, -300.0], dtype=np.float16), np.ones(2, np.float16), np.zeros(2, np.float16))
    assert y.dtype == np.float16
    assert y.tolist() == [1.0, -1.0]


def test_a_class_number_from_the_host_is_checked_on_every_device(device):
    with pytest.raises(ValueError, match=r"class numbers 7 … 7 for 2 classes"):
        ops.cross_entropy(leaf([[0.0, 1.0]], device), np.array([7]))
    assert ops.cross_entropy(leaf([[0.0, 0.0]], device), [1]).item() == pytest.approx(np.log(2))
