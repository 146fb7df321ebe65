"""The tape's own tests once more, on the arrays of a strict stand-in for CuPy."""

import inspect

import pytest
import test_tape
from test_without_a_gpu import stand_in  # noqa: F401

import tinyvit as tv

OF_A_CPU_ALONE = {  # they look at NumPy's arrays, write them into a rule, or start a process
    test_tape.test_a_hessian_vector_product_equals_the_formula,
    test_tape.test_a_tensor_is_made_of_a_copy_off_the_tape,
    test_tape.test_dropping_a_chain_of_300_000_ops_that_nobody_swept_does_not_crash,
    test_tape.test_gradcheck_names_the_input_the_element_both_values_and_the_tolerance,
    test_tape.test_gradgradcheck_catches_a_rule_that_leaves_the_tape,
    test_tape.test_numpy_takes_a_constant_and_refuses_to_lose_a_gradient,
    test_tape.test_the_starting_gradient_is_checked_and_cast,
    test_tape.test_values_leave_as_arrays_and_python_numbers,
    test_tape.test_what_is_printed,
}

for _name, _test in inspect.getmembers(test_tape, inspect.isfunction):
    if _name.startswith("test_") and _test not in OF_A_CPU_ALONE:
        globals()[_name] = _test


@pytest.fixture(autouse=True)
def on_the_stand_in(stand_in):  # noqa: F811
    with tv.use_backend("cupy"):
        yield


def test_these_tests_compute_there(stand_in):  # noqa: F811
    y = test_tape.leaf([1.0]) * test_tape.constant([2.0])
    assert y.device == "gpu"
    assert stand_in.launches
