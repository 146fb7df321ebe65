"""The judge: what it measures without a rule, what it finds, and what it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyvit as tv
from tinyvit.engine.differences import NotAnalyticError, complex_step, five_point
from tinyvit.engine.findings import findings
from tinyvit.layers import EncoderLayer

ops = tv.ops


def leaf(values):
    return tv.tensor(np.array(values, np.float64), requires_grad=True)


def slope(curve, **settings):
    """The first component of φ′(0), as its parts."""
    found = five_point(lambda t: np.asarray([curve(t)]), **{"step": 1e-3, "rtol": 1e-9, "atol": 1e-9, **settings})
    return found.value[0], found.uncertainty[0], bool(found.kink[0]), (found.left[0], found.right[0])


# ------------------------------------------------------------------------------------------------------- measuring


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.floats(-3, 3))
def test_the_slope_of_a_polynomial_is_measured_to_nine_digits(coefficients, at):
    p = np.polynomial.Polynomial(coefficients)
    value, _, kink, _ = slope(lambda t: p(at + t))
    scale = np.polynomial.Polynomial(np.abs(coefficients))(abs(at) + 1)
    assert not kink
    assert value == pytest.approx(p.deriv()(at), abs=1e-10 * (1 + scale))


@pytest.mark.parametrize("at", [1e-7, 1e-5, 1e-3, 1.0, 1e3])
def test_the_step_fits_itself_to_the_scale_of_the_function(at):
    """A step of 1e-3 from 1e-7 leaves the domain of the logarithm, and NumPy's warnings of it stay inside."""
    value, _, kink, _ = slope(lambda t: np.log(at + t), rtol=1e-6)
    assert not kink
    assert value == pytest.approx(1 / at, rel=1e-6)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-1, 1))
def test_a_kink_at_the_point_is_seen_with_its_two_slopes(left, right, curvature):
    value, _, kink, sides = slope(lambda t: (right if t > 0 else left) * t + curvature * t * t)
    if abs(right - left) > 1e-3:
        assert kink
        assert math.isnan(value)
        assert sides == pytest.approx((left, right), abs=1e-5)


@given(st.floats(-4, -1), st.sampled_from([-1, 1]))
def test_a_kink_beside_the_point_is_none(exponent, side):
    """However near it is: the steps shrink until they do not reach it."""
    kink_at = side * 10.0**exponent * 1e-3
    value, _, kink, _ = slope(lambda t: 2 * t + abs(t - kink_at))
    assert not kink
    assert value == pytest.approx(2 - side, abs=1e-7)


@pytest.mark.parametrize("curve", [np.sign, lambda t: np.sqrt(t), lambda t: 1.0 if t > 0 else 5 * t, np.cbrt])
def test_a_jump_or_a_slope_without_bound_is_a_kink_with_any_slope_between(curve):
    value, _, kink, sides = slope(curve)
    assert kink
    assert math.isnan(value)
    assert sides == (-math.inf, math.inf)


def test_noise_is_no_kink_but_uncertainty():
    rng = np.random.default_rng(0)
    value, uncertainty, kink, _ = slope(lambda t: 1 + 3 * t + 1e-7 * rng.standard_normal())
    assert not kink
    assert 1e-7 < uncertainty < 1e-2
    assert value == pytest.approx(3, abs=1e-2)


def test_complex_steps_are_exact_and_refuse_what_is_not_analytic():
    x = np.linspace(-2, 2, 7)
    found = complex_step(lambda t: np.exp((x + t) * 1.5) * np.sin(x + t))
    np.testing.assert_allclose(found.value, np.exp(1.5 * x) * (1.5 * np.sin(x) + np.cos(x)), rtol=4e-16, atol=1e-15)
    for curve, message in [
        (lambda t: np.abs(x + t), "real"),
        (lambda t: np.conj(x + t), "differ"),
        (lambda t: (x + t).astype(float), "discards the imaginary part"),
        (lambda t: np.arctan2(x + t, 1), "no complex numbers"),
    ]:
        with pytest.raises(NotAnalyticError, match=message):
            complex_step(curve)


# ------------------------------------------------------------------------------------------------------- judging


def scaled(factor, name="scaled"):
    """x², whose rule multiplies by `factor`, an array."""

    def forward(xp, x):
        return x * x

    forward.__name__ = name
    op = tv.primitive(forward)
    op.gradients(x=lambda F, gy, x: gy * (2 * x) * factor)
    return op


def test_the_message_names_input_element_values_and_tolerance():
    factor = np.ones((2, 3))
    factor[1, 2] = 1.25
    message = (
        r"^scaled: the gradient of input 0 is wrong at element \(1, 2\), for element \(1, 2\) of the result: the rule "
        r"gives 5, differences give 4 \(tolerance 4e-07; 1 of 36 elements of the Jacobian fail\)$"
    )
    with pytest.raises(tv.GradcheckError, match=message):
        tv.gradcheck(scaled(factor), leaf(np.full((2, 3), 2.0)))


def test_among_several_inputs_and_results_the_right_ones_are_named():
    wrong = scaled(np.array([1.0, 2.0]))

    def f(a, b):
        return a * 2, (a + wrong(b)).sum(), a[0] * b

    with pytest.raises(tv.GradcheckError, match=r"input 1 is wrong at element \(1,\), for element \(\) of result 1:"):
        tv.gradcheck(f, [leaf([1.0, 2.0]), leaf([3.0, 4.0])])


def test_one_part_in_a_million_is_an_error():
    tv.gradcheck(scaled(1 + 1e-8), leaf([1.0, -2.0]))
    with pytest.raises(tv.GradcheckError, match=r"the rule gives 2\.000002"):
        tv.gradcheck(scaled(1 + 1e-6), leaf([1.0]))
    with pytest.raises(tv.GradcheckError):
        tv.gradcheck(scaled(1 + 1e-10), leaf([1.0, -2.0]), complex_steps=True, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("element", [0, 77, 4095, 9999])
def test_in_a_large_function_the_element_is_found_from_a_direction_that_misses(element):
    factor = np.ones(10_000)
    factor[element] = 1.5
    with pytest.raises(tv.GradcheckError, match=rf"wrong at element \({element},\): the rule gives .* differences"):
        tv.gradcheck(scaled(factor), leaf(np.linspace(1, 2, 10_000)))


def test_a_large_right_function_passes_and_costs_few_evaluations():
    calls = []

    def f(x):
        calls.append(x.shape)
        return ops.softmax(ops.tanh(x), axis=-1)

    tv.gradcheck(f, leaf(np.random.default_rng(0).standard_normal((50, 80))))
    assert len(calls) < 1000


def test_all_methods_find_the_same_error_and_an_unknown_one_is_refused():
    for method in ("auto", "jacobian", "projections"):
        with pytest.raises(tv.GradcheckError, match=r"at element \(1,\)"):
            tv.gradcheck(scaled(np.array([1.0, 1.1, 1.0])), leaf([1.0, 2.0, 3.0]), method=method)
        tv.gradcheck(scaled(1.0), leaf([1.0, 2.0, 3.0]), method=method)
    with pytest.raises(ValueError, match="'jacobian' or 'projections', not 'hope'"):
        tv.gradcheck(ops.exp, leaf([1.0]), method="hope")


def test_a_kink_is_an_error_until_it_is_allowed_and_then_the_choice_must_lie_between():
    x = leaf([0.0, 1.0])
    message = (
        r"^abs has no slope by input 0 at element \(0,\), for element \(0,\) of the result: a kink, -1 on one side and "
        r"1 on the other; the rule gives 0\. Move the input off the kink, or allow it with kinks='allow'$"
    )
    with pytest.raises(tv.GradcheckError, match=message):  # a difference over both sides would find 0, and pass
        tv.gradcheck(ops.abs, x)
    tv.gradcheck(ops.abs, x, kinks="allow")
    outside = tv.primitive(lambda xp, x: xp.abs(x))
    outside.gradients(x=lambda F, gy, x: gy * F.where(x == 0, 1.5, F.sign(x)))
    with pytest.raises(tv.GradcheckError, match=r"the rule gives 1\.5, differences give 1"):
        tv.gradcheck(outside, x, kinks="allow")
    with pytest.raises(ValueError, match="kinks is 'raise' or 'allow', not 'skip'"):
        tv.gradcheck(ops.abs, x, kinks="skip")


def test_a_kink_is_seen_along_projections_too():
    x = leaf(np.zeros(5000))
    with pytest.raises(tv.GradcheckError, match="a kink"):
        tv.gradcheck(ops.relu, x)
    tv.gradcheck(ops.relu, leaf(np.linspace(1, 2, 5000)))


def test_a_rule_that_is_not_linear_in_gy_is_named_as_such():
    op = tv.primitive(lambda xp, x: x * 2)
    op.gradients(x=lambda F, gy: 2 * gy * gy)  # right for every unit cotangent
    with pytest.raises(tv.GradcheckError, match="is not linear in the gradient of the result, as a rule must be"):
        tv.gradcheck(op, leaf([1.0, 2.0]))


def test_a_second_derivative_off_the_tape_is_found():
    op = tv.primitive(lambda xp, x: x * x * x)
    op.gradients(x=lambda F, gy, x: gy * (3 * (x.data if F is ops else x) ** 2))
    tv.gradcheck(op, leaf([1.0, 2.0]))
    with pytest.raises(tv.GradcheckError, match=r"^the gradient of .*: the gradient of input 0 is wrong at"):
        tv.gradgradcheck(op, leaf([1.0, 2.0]))


def test_a_recorded_sweep_that_differs_from_an_ordinary_one_is_named_as_such():
    op = tv.primitive(twin=lambda F, x: x * x * 1.001)(lambda xp, x: x * x)
    op.gradient(lambda F, gy, x: (gy * 2 * x,))
    message = r"an ordinary sweep beside a recorded one: .* the rule gives [-.\d]+, the recorded sweep gives [-.\d]+"
    with pytest.raises(tv.GradcheckError, match=message):
        tv.gradgradcheck(op, leaf([1.0]))


def test_complex_steps_are_refused_where_a_forward_is_not_analytic():
    tv.gradcheck(ops.softmax, leaf([[1.0, 2.0]]), complex_steps=True, rtol=1e-13, atol=1e-15)
    with pytest.raises(NotAnalyticError):
        tv.gradcheck(ops.var, leaf([1.0, 2.0]), complex_steps=True)


def test_results_that_are_no_numbers_with_slopes_are_passed_over():
    tv.gradcheck(lambda x: [x * x, ops.argmax(x), x > 0], leaf([1.0, 3.0]))
    tv.gradgradcheck(lambda x: [x * x, ops.argmax(x), x > 0], leaf([1.0, 3.0]))
    with pytest.raises(TypeError, match="gives bool, which has no slope to check"):
        tv.gradcheck(lambda x: x > 0, leaf([1.0]))


def test_one_element_on_a_kink_among_many_is_a_kink_and_no_wrong_rule():
    values = np.random.default_rng(0).standard_normal((100, 100))
    values[3, 4] = 0
    tv.gradcheck(ops.relu, [leaf(values)], kinks="allow")
    with pytest.raises(tv.GradcheckError, match="has no slope by input 0 at a random direction: a kink"):
        tv.gradcheck(ops.relu, [leaf(values)])


def op(forward, rule):
    made = tv.primitive(forward)
    made.gradients(x=rule)
    return made


def overwriting(xp, x):
    x *= 2
    return x * 1


def greedy(F, gy):
    gy *= 3
    return gy


@pytest.mark.parametrize(
    ("f", "values", "error", "message"),
    [
        (lambda x: x * np.array([1, np.nan]), [1.0, 2.0], tv.GradcheckError, r"gives nan, for element \(1,\) of the"),
        (lambda x: ops.dropout(x, 0.5), [1.0] * 9, tv.GradcheckError, "gives other values when called again: seed"),
        (lambda x: x.astype(np.float32), [1.0], TypeError, "gives float32 for float64; differences need float64"),
        (lambda x: x.data, [1.0], TypeError, "must give a Tensor or several, and gave ndarray"),
        (op(overwriting, lambda F, gy: 2 * gy), [1.0], tv.GradcheckError, "its forward writes to input 0"),
        (op(lambda xp, x: 3 * x, greedy), [1.0], tv.GradcheckError, "a rule writes to gy, which is not its own"),
    ],
    ids=["not finite", "random", "float32", "no Tensor", "writes to its input", "writes to gy"],
)
def test_what_cannot_be_judged_or_breaks_the_contract_is_named(f, values, error, message):
    x = leaf(values)
    with pytest.raises(error, match=message):
        tv.gradcheck(f, [x])


def zero_rule(forward):
    """An op whose rule says that nothing depends on its argument."""
    return op(lambda xp, x: forward(x), lambda F, gy: F.zeros_like(gy))


@pytest.mark.parametrize(
    ("forward", "at"),
    [
        (lambda x: x + 1e8, 1.3),  # a step of 1e-9 is lost in rounding, and all differences agree on 0
        (lambda x: np.exp(-((1e5 * x) ** 2)), 5e-6),  # a step of 1e-3 reaches past the peak, and finds 0 on both sides
        (lambda x: np.tanh(1e6 * x), 3e-7),
    ],
    ids=["large", "narrow", "steep"],
)
def test_differences_that_agree_on_zero_for_want_of_digits_do_not_pass_a_rule_of_zeros(forward, at):
    with pytest.raises(tv.GradcheckError):
        tv.gradcheck(zero_rule(forward), leaf([at]))


def test_right_rules_pass_where_slopes_are_tiny_or_results_large():
    tv.gradcheck(ops.softmax, leaf([0.0, 22.0]))
    tv.gradcheck(ops.softmax, leaf([0.0, 100.0]))
    mask = np.random.default_rng(0).random((80, 80)) < 0.5
    tv.gradcheck(lambda x: ops.where(mask, x, -1e9), leaf(np.ones((80, 80))))
    with tv.no_grad():
        tv.gradcheck(ops.exp, leaf([1.0]))
    tv.gradgradcheck(lambda x, y: x * x + 0 * y.detach(), [leaf([1.0]), leaf([1e300])])


def test_a_large_result_does_not_hide_a_kink_in_another():
    with pytest.raises(tv.GradcheckError, match="a kink, -1 on one side and 1 on the other"):
        tv.gradcheck(lambda x: (ops.abs(x), x * 0 + 1e5), leaf([0.0]))
    tv.gradcheck(lambda x: (ops.relu(x), x * 0 + 1e12), leaf([0.0]), kinks="allow")


@pytest.mark.parametrize("seed", range(4))
def test_one_element_on_a_kink_does_not_excuse_the_others(seed):
    values = np.random.default_rng(0).standard_normal((100, 100))
    values[3, 4] = 0
    factor = np.where(np.random.default_rng(1).random((100, 100)) < 0.02, 3.0, 1.0)
    wrong = op(lambda xp, x: xp.maximum(x, 0), lambda F, gy, x: gy * (x > 0) * factor)
    with pytest.raises(tv.GradcheckError, match="is wrong at element"):
        tv.gradcheck(wrong, leaf(values), kinks="allow", seed=seed)


def test_nan_in_a_large_gradient_is_found_where_it_is():
    factor = np.ones(10_000)
    factor[7777] = np.nan
    with pytest.raises(tv.GradcheckError, match=r"wrong at element \(7777,\): the rule gives nan"):
        tv.gradcheck(scaled(factor), leaf(np.linspace(1, 2, 10_000)))


@pytest.mark.parametrize("setting", [{"rtol": -1}, {"atol": -1.0}, {"eps": 0.0}, {"eps": math.nan}], ids=str)
def test_settings_that_would_pass_anything_are_refused(setting):
    with pytest.raises(ValueError, match=r"must be above 0, rtol .* and atol .* not below"):
        tv.gradcheck(ops.exp, leaf([1.0]), **setting)


def test_second_order_names_the_gradient_among_its_inputs():
    cut = lambda F, gy: tv.Tensor(gy.data) if F is ops else gy  # off the tape
    product = tv.primitive(lambda xp, a, b: a * b)
    product.gradients(a=lambda F, gy, b: cut(F, gy) * b, b=lambda F, gy, a: gy * a)
    inputs = [leaf([1.0]), leaf([2.0])]
    with pytest.raises(
        tv.GradcheckError, match=r"^the gradient of .*: the gradient of gy is wrong at element \(0,\), for"
    ):
        tv.gradgradcheck(product, inputs)
    several = lambda a, b: (product(a, b), a * b)
    with pytest.raises(tv.GradcheckError, match=r"the gradient of gy of result 0 is wrong"):
        tv.gradgradcheck(several, inputs)
    with pytest.raises(ValueError, match="complex steps are for gradcheck"):
        tv.gradgradcheck(product, inputs, complex_steps=True)


def test_a_layer_is_checked_with_all_its_parameters():
    layer = EncoderLayer(4, 2, 6).to(dtype=np.float64)
    inputs = [leaf(np.random.default_rng(0).standard_normal((1, 3, 4))), *layer.parameters()]
    tv.gradcheck(lambda x, *_: layer(x), inputs)
    found = findings(lambda x, *_: layer(x), inputs)
    assert [finding.input for finding in found] == list(range(len(inputs)))
    assert all(finding.elements for finding in found)
    layer.norm2.bias.requires_grad = False
    with pytest.raises(tv.GradcheckError):  # not a slope any more: the loss still depends on it
        tv.gradcheck(lambda x, b: layer(x.detach()) + 0 * b, [inputs[0], leaf([1.0])])


def test_empty_inputs_have_nothing_to_check():
    tv.gradcheck(ops.exp, leaf(np.zeros((0, 3))))
    tv.gradcheck(lambda x, y: x.sum() + y, [leaf(np.zeros((0, 3))), leaf([1.0])])
    tv.gradgradcheck(ops.exp, leaf(np.zeros((0, 3))))
