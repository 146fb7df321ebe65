"""The tape: what records, what is kept and freed, who owns a gradient; Tensor's contracts; user-made ops; the judge."""

import gc
import re
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine import tape
from tinyvit.engine.backend import default_namespace

ops = tv.ops


def leaf(values, dtype=np.float64):
    return tv.tensor(np.asarray(values, dtype=dtype), device=default_namespace().device, requires_grad=True)


def constant(values, dtype=np.float64):
    return tv.tensor(np.asarray(values, dtype=dtype), device=default_namespace().device)


def share_memory(x, y):
    xp = default_namespace()
    return (np.shares_memory if xp.device == "cpu" else xp.may_share_memory)(x.data, y.data)


def counting_op():
    """An op that gives x itself, and the list of the calls of its rule."""
    calls = []

    @tv.primitive
    def same(xp, x):
        return x * 1

    same.gradients(x=lambda F, gy: calls.append(1) or gy)
    return same, calls


# -------------------------------------------------------------------------------------------------------- long and deep


def test_a_chain_of_a_hundred_thousand_ops_is_swept_with_one_rule_call_an_op():
    same, calls = counting_op()
    x = leaf([1.0])
    y = x
    for _ in range(100_000):
        y = same(y)
    y.backward(np.ones(1))
    assert x.grad.tolist() == [1.0]
    assert len(calls) == 100_000


def test_a_ladder_of_diamonds_is_swept_once_a_rung_and_not_once_a_path():
    same, calls = counting_op()
    x = leaf([1.0])
    y = x
    for _ in range(60):
        y = same(y)
        y = y + y
    y.backward(np.ones(1))
    assert x.grad.tolist() == [2.0**60]
    assert len(calls) == 60


def test_dropping_a_chain_of_300_000_ops_that_nobody_swept_does_not_crash():
    code = """if True:
        import numpy as np, tinyvit as tv
        y = x = tv.tensor(np.ones(1), requires_grad=True)
        for _ in range(300_000):
            y = y + 1.0
        del y
        print("alive")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


# ------------------------------------------------------------------------------------------------- sums of many uses


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("uses", [1, 2, 3, 4, 7])
def test_every_use_of_a_value_counts(shape, uses):
    x = leaf(np.full(shape, 2.0))
    h = x * 1.0
    y = h + 0.0
    for _ in range(uses - 1):
        y = y + h
    z = x + 0.0
    for _ in range(uses - 1):
        z = z + x
    [g] = tv.grad(y, [x], np.ones(shape))
    np.testing.assert_array_equal(g.numpy(), np.full(shape, float(uses)), strict=True)
    z.backward(np.ones(shape))
    np.testing.assert_array_equal(x.grad.numpy(), np.full(shape, float(uses)), strict=True)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_value_used_along_paths_of_different_length_gets_their_sum(shape):
    x = leaf(np.full(shape, 3.0))
    a = x * x  # 2x = 6
    b = a * x + a  # (a + 2x·x) + 2x = 27 + 6
    c = ops.exp(b - b) * b + x * a  # b′ + 3x² = 33 + 27
    [g] = tv.grad(c, [x], np.ones(shape))
    np.testing.assert_allclose(g.numpy(), np.full(shape, 60.0))


def test_backward_adds_to_the_gradient_that_is_there():
    x = leaf([1.0, 2.0])
    for expected in ([2.0, 4.0], [4.0, 8.0], [6.0, 12.0]):
        (x * x).sum().backward()
        assert x.grad.tolist() == expected
    x.grad = None
    (3 * x).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_backward_from_a_leaf_is_the_gradient_one():
    x = leaf(5.0)
    x.backward()
    assert x.grad.item() == 1.0


@pytest.mark.parametrize("used", [[0], [2], [0, 2], [1, 1, 1]])
def test_of_several_results_only_the_used_ones_count(used):
    x = leaf([1.0, 2.0, 3.0])
    parts = ops.split(x, 3)
    sum((i + 1) * parts[i].sum() for i in used).backward()
    assert x.grad.tolist() == [sum((i + 1) for i in used if i == k) for k in range(3)]


# -------------------------------------------------------------------------------------------------- sweeping twice


def test_a_second_sweep_is_refused_and_says_what_to_pass():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    for again in (y.backward, lambda: tv.grad(y, [x])):
        with pytest.raises(tv.TapeError, match=r"`sum` was taken before.*retain_graph=True"):
            again()
    assert x.grad.tolist() == [2.0, 4.0]


def test_a_sweep_through_a_part_that_was_swept_before_is_refused():
    x = leaf([1.0])
    h = ops.exp(x)
    h.sum().backward()
    with pytest.raises(tv.TapeError, match="the gradient of `exp` was taken before"):
        (h * h).sum().backward()


def test_a_retained_graph_can_be_swept_again_and_doubles_the_gradients():
    x, w = leaf([1.0, 2.0]), leaf([[1.0, 2.0], [3.0, 4.0]])
    y = (ops.layer_norm(ops.exp(w @ x), x, x) ** 2).sum()
    y.backward(retain_graph=True)
    once = x.grad.numpy().copy(), w.grad.numpy().copy()
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * once[0])
    np.testing.assert_array_equal(w.grad.numpy(), 2 * once[1])
    with pytest.raises(tv.TapeError):
        y.backward()


# ------------------------------------------------------------------------------------------------ what is kept


def saved(y):
    """The arrays that the tape keeps for the rules of y's op, by name."""
    has_array = lambda v: any(map(has_array, v)) if isinstance(v, tuple) else isinstance(v, type(constant([0.0]).data))
    return {name: v for name, v in y.node.saved.items() if has_array(v)}


@pytest.mark.parametrize(
    ("f", "kept"),
    [
        (lambda x, c: x + c, set()),
        (lambda x, c: c - x, set()),
        (lambda x, c: -x, set()),
        (lambda x, c: x.sum(0), set()),
        (lambda x, c: x.mean(), set()),
        (lambda x, c: x.reshape(-1), set()),
        (lambda x, c: x[0], set()),
        (lambda x, c: ops.concatenate([x, c]), set()),
        (lambda x, c: x * c, {"b"}),
        (lambda x, c: c * x, {"a"}),
        (lambda x, c: x * x, {"a", "b"}),
        (lambda x, c: x / c, {"b"}),
        (lambda x, c: c / x, {"y", "b"}),
        (lambda x, c: ops.exp(x), {"y"}),
        (lambda x, c: ops.log(x), {"x"}),
        (lambda x, c: ops.relu(x), {"y"}),
        (lambda x, c: ops.softmax(x), {"y"}),
        (lambda x, c: x @ c, {"b"}),
        (lambda x, c: c @ x, {"a"}),
        (lambda x, c: ops.linear(x, c), {"weight"}),
        (lambda x, c: ops.linear(c, c, x[0]), set()),
        (lambda x, c: ops.where(c > 0, x, 0.0), {"condition"}),
        (lambda x, c: ops.gelu(x), {"x"}),
        (lambda x, c: ops.layer_norm(x, c[0], c[1]), {"x", "weight"}),
        (lambda x, c: ops.scaled_dot_product_attention(x, c, c), {"q", "k", "v"}),
        (lambda x, c: ops.multi_head_attention(ops.stack([x, c, x], -1).reshape(1, 2, 6), 2), {"qkv"}),
        (lambda x, c: ops.cross_entropy(x, c, reduction="none"), {"logits", "target"}),
    ],
)
def test_only_what_the_rules_of_the_tracked_arguments_ask_for_is_kept(f, kept):
    y = f(leaf([[1.0, 2.0], [3.0, 4.0]]), constant([[1.0, 2.0], [3.0, 4.0]]))
    assert set(saved(y)) == kept


def test_what_is_kept_is_the_array_itself_and_no_copy():
    x, c = leaf([1.0]), constant([2.0])
    y = ops.exp(x * c)
    assert saved(y)["y"] is y.data
    product = x * c
    assert saved(product)["b"] is c.data


def test_an_input_that_no_rule_needs_dies_as_soon_as_it_is_dropped():
    x = leaf([1.0, 2.0])
    h = x * 2
    array = weakref.ref(h.data)
    y = (h * constant([3.0, 4.0])).sum()
    del h
    assert array() is None
    y.backward()
    assert x.grad.tolist() == [6.0, 8.0]


@pytest.mark.parametrize("retain_graph", [False, True])
def test_saved_arrays_are_freed_as_the_sweep_passes_them(retain_graph):
    """When a rule runs, the arrays saved by every later op are gone, unless the graph is retained."""
    arrays, alive = [], []

    @tv.primitive
    def twice(xp, x):
        return x * 2

    def rule(F, gy, x):
        alive.append([r() is not None for r in arrays])
        return gy * 2

    twice.gradients(x=rule)
    y = leaf([1.0])
    for _ in range(4):
        y = y * 1.0  # an array that only the next node's `saved` keeps
        arrays.append(weakref.ref(y.data))
        y = twice(y)
    y.backward(np.ones(1), retain_graph=retain_graph)
    expected = [[True] * 4] * 4 if retain_graph else [[True] * (4 - k) + [False] * k for k in range(4)]
    assert alive == expected


def test_gradients_of_intermediate_values_are_freed_as_the_sweep_passes_them():
    seen, alive = [], []

    @tv.primitive
    def twice(xp, x):
        return x * 2

    def rule(F, gy):
        alive.append(sum(r() is not None for r in seen))
        gx = gy * 2
        seen.append(weakref.ref(gx))
        return gx

    twice.gradients(x=rule)
    y = leaf([1.0])
    for _ in range(5):
        y = twice(y)
    y.backward(np.ones(1))
    assert max(alive) == 1  # the gradient that the rule was given, and no older one


def test_after_the_sweep_only_the_leaf_and_its_gradient_are_left():
    gc.disable()
    try:
        x = leaf([1.0, 2.0])
        h = ops.exp(x)
        y = ops.layer_norm(h, h, h).sum()
        arrays = [weakref.ref(h.data), weakref.ref(y.data)]
        y.backward()
        del h, y
        assert [a() for a in arrays] == [None, None]
        assert x.grad is not None
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------------------- overwriting


def test_item_assignment_is_refused_where_the_tape_needs_the_value():
    x = leaf([1.0, 2.0])
    with pytest.raises(tv.TapeError, match=r"item assignment.*ops\.where.*no_grad"):
        x[0] = 5.0
    y = x * 2
    with pytest.raises(tv.TapeError, match="item assignment"):
        y[0] = 5.0
    with pytest.raises(tv.TapeError, match="item assignment"), tv.no_grad():
        y[0] = 5.0
    assert (x.tolist(), y.tolist()) == ([1.0, 2.0], [2.0, 4.0])


def test_item_assignment_works_on_free_constants_and_on_leaves_under_no_grad():
    c = constant([1.0, 2.0, 3.0])
    c[1:] = constant([7.0, 8.0])
    c[constant([True, False, False], bool)] = -1
    assert c.tolist() == [-1.0, 7.0, 8.0]
    x = leaf([1.0, 2.0])
    with tv.no_grad():
        x[0] = 5.0
    (x * x).sum().backward()
    assert x.grad.tolist() == [10.0, 4.0]


def test_a_constant_does_not_take_over_a_recorded_value_without_its_gradient():
    c = constant([1.0, 2.0])
    with pytest.raises(tv.TapeError):
        c[:1] = leaf([1.0]) * 2


OVERWRITTEN = {
    "a constant": (lambda x, c: x * c, lambda x, c, y: c.__setitem__(0, 9.0)),
    "a constant through a view": (lambda x, c: x * c, lambda x, c, y: c[1:].__setitem__(0, 9.0)),
    "a constant through its detached twin": (lambda x, c: x * c, lambda x, c, y: c.detach().__setitem__(0, 9.0)),
    "a constant of which a view was used": (lambda x, c: x[1:] * c[1:], lambda x, c, y: c.__setitem__(1, 9.0)),
    "a reshaped constant": (lambda x, c: x * c.reshape(2, 1).T[0], lambda x, c, y: c.__setitem__(1, 9.0)),
    "a part of a split constant": (lambda x, c: x * c, lambda x, c, y: ops.split(c, 2)[0].__setitem__(0, 9.0)),
    "a leaf under no_grad": (lambda x, c: x * x, lambda x, c, y: assign_under_no_grad(x)),
    "a leaf through detach": (lambda x, c: ops.log(x), lambda x, c, y: x.detach().__setitem__(0, 9.0)),
    "a leaf by an optimizer": (lambda x, c: x * x, lambda x, c, y: optimizer_step(x)),
    "an argument of a fused op": (lambda x, c: ops.layer_norm(x, c, c), lambda x, c, y: c.__setitem__(0, 9.0)),
    "an argument of einsum": (lambda x, c: ops.einsum("i,i->i", x, c), lambda x, c, y: c.__setitem__(0, 9.0)),
    "the result that a rule uses": (lambda x, c: ops.exp(x), lambda x, c, y: y.detach().__setitem__(0, 9.0)),
    "the result through a view": (lambda x, c: ops.exp(x), lambda x, c, y: y[1:].detach().__setitem__(0, 9.0)),
}


def assign_under_no_grad(x):
    with tv.no_grad():
        x[0] = 9.0


def optimizer_step(x):
    x.data -= 0.1
    x.bump_version()


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_a_saved_value_that_was_overwritten_stops_the_sweep(name):
    f, overwrite = OVERWRITTEN[name]
    x, c = leaf([1.0, 2.0]), constant([3.0, 4.0])
    y = f(x, c)
    overwrite(x, c, y)
    with pytest.raises(tv.TapeError, match=r"overwritten since.*overwrite a copy, or sweep first"):
        y.sum().backward()


def test_an_index_that_is_overwritten_later_stops_the_sweep_or_makes_no_difference():
    x, index = leaf([1.0, 2.0, 3.0]), tv.tensor(np.array([0, 1]))
    y = x[index].sum()
    index[0] = 2
    try:
        [g] = tv.grad(y, [x])
    except tv.TapeError as error:
        g = error
    assert isinstance(g, tv.TapeError) or g.tolist() == [1.0, 1.0, 0.0]


def test_an_optimizer_step_between_two_sweeps_of_one_graph_is_noticed():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    optimizer_step(x)
    with pytest.raises(tv.TapeError, match=r"`multiply` saved its argument '[ab]'.*optimizer step"):
        y.backward()


def test_writing_where_no_rule_needs_the_value_is_no_error():
    x, c = leaf([1.0, 2.0]), constant([3.0, 4.0])
    y = (x + c).sum()
    c[0] = 9.0
    y.backward()
    assert x.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: ops.linear(x, constant([[1.0, 2.0]])),
        lambda x: ops.logsumexp(x, axis=1),
        lambda x: x[[0, 0]],
        lambda x: x[:, [0, 1]],
        lambda x: x * 2,
        lambda x: tv.tensor(x),
        lambda x: ops.einsum("ij,kj->ki", x, constant([[1.0, 2.0]])),
    ],
)
def test_writing_to_a_result_with_memory_of_its_own_does_not_count_as_writing_to_the_argument(f):
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    loss = (x * x).sum()
    with tv.no_grad():
        y = f(x)
        assert not share_memory(y, x)
        y[0] = 0.0
    loss.backward()
    assert x.grad.tolist() == [[2.0, 4.0], [6.0, 8.0]]


def test_a_rebound_leaf_forgets_its_gradient_and_its_recorded_uses():
    x = leaf([1.0, 2.0])
    old = (x * x).sum()
    (2 * x).sum().backward()
    x.rebind(np.array([5.0, 6.0, 7.0]))
    assert x.grad is None
    old.backward()
    assert x.grad is None
    (x * x).sum().backward()
    assert x.grad.tolist() == [10.0, 12.0, 14.0]
    with pytest.raises(tv.TapeError, match="rebind"):
        (x * 2).rebind(np.zeros(3))


# ---------------------------------------------------------------------------------------------- no_grad, threads


def test_no_grad_and_enable_grad_nest_and_are_undone_by_exceptions():
    x = leaf([1.0])
    with tv.no_grad():
        assert not (x * 2).requires_grad
        with tv.enable_grad():
            assert (x * 2).requires_grad
            with tv.no_grad():
                assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad
    with pytest.raises(ZeroDivisionError), tv.no_grad():
        1 / 0  # noqa: B018
    assert (x * 2).requires_grad


def test_no_grad_decorates_a_function_for_every_call():
    @tv.no_grad()
    def double(x):
        return x * 2

    @tv.no_grad()
    def recorded(x):
        with tv.enable_grad():
            return x * 2

    x = leaf([1.0])
    for _ in range(2):
        assert not double(x).requires_grad
        assert recorded(x).requires_grad
        assert (x * 2).requires_grad


def test_a_leaf_made_under_no_grad_still_wants_its_gradient():
    with tv.no_grad():
        x = leaf([1.0])
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3.0]


def in_threads(n, function):
    """The results of function(0) … function(n − 1), each in a thread of its own, all at once."""
    results, barrier = [None] * n, threading.Barrier(n)

    def run(i):
        barrier.wait()
        results[i] = function(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


def test_a_thread_started_inside_no_grad_records():
    x = leaf([1.0])
    with tv.no_grad():
        assert in_threads(1, lambda i: (x * 2).requires_grad) == [True]
        assert not (x * 2).requires_grad


def test_no_grad_in_one_thread_leaves_the_others_alone():
    x = leaf([1.0])
    inside, done = threading.Event(), threading.Event()

    def hold():
        with tv.no_grad():
            inside.set()
            assert done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    assert (x * 2).requires_grad
    done.set()
    holder.join()


def test_four_threads_record_and_sweep_at_once_with_the_gradients_of_a_serial_run():
    w = np.random.default_rng(0).standard_normal((8, 8))

    def gradient(i):
        x = leaf(np.random.default_rng(i).standard_normal((4, 8)))
        weight = leaf(w)
        for _ in range(20):
            y = x
            for _ in range(5):
                y = ops.gelu(ops.layer_norm(ops.linear(y, weight), weight[0], weight[1])) + y
            y.sum().backward()
        return weight.grad.numpy()

    for serial, parallel in zip(map(gradient, range(4)), in_threads(4, gradient), strict=True):
        np.testing.assert_array_equal(serial, parallel)


def test_threads_share_a_leaf_without_sharing_what_they_record():
    x = leaf([1.0, 2.0])
    gradients = in_threads(4, lambda i: tv.grad((x * x * (i + 1)).sum(), [x])[0].tolist())
    assert gradients == [[2.0 * (i + 1), 4.0 * (i + 1)] for i in range(4)]
    assert x.grad is None


# ------------------------------------------------------------------------------------------------------------- grad()


def test_grad_returns_in_the_order_asked_for_and_touches_no_grad():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    x.grad = constant([7.0, 7.0])
    gy, gx, again = tv.grad((x * x * y).sum(), [y, x, y])
    assert (gx.tolist(), gy.tolist(), again.tolist()) == ([6.0, 16.0], [1.0, 4.0], [1.0, 4.0])
    assert x.grad.tolist() == [7.0, 7.0]
    assert y.grad is None


def test_grad_equals_backward():
    x = leaf([[0.5, -1.0], [2.0, 0.1]])
    f = lambda: ops.softmax(ops.tanh(x) @ x)[0].sum() + x.var()
    [g] = tv.grad(f(), [x])
    f().backward()
    np.testing.assert_array_equal(g.numpy(), x.grad.numpy())
    assert not g.requires_grad
    assert not x.grad.requires_grad


def test_grad_with_respect_to_computed_tensors():
    x = leaf([1.0, 2.0])
    h = x * 3
    y = (h * h).sum()
    gh, gx, gy = tv.grad(y, [h, x, y])
    assert (gh.tolist(), gx.tolist(), gy.item()) == ([6.0, 12.0], [18.0, 36.0], 1.0)


def test_grad_goes_no_further_than_it_is_asked_to():
    same, calls = counting_op()
    x = leaf([2.0])
    h = same(x)
    y = (h * h).sum()
    assert tv.grad(y, [h])[0].tolist() == [4.0]
    assert calls == []
    assert tv.grad(h, [x], np.ones(1))[0].tolist() == [1.0]  # the part that was not swept is still there


def test_grad_of_several_outputs_adds_them_up():
    x = leaf([1.0, 2.0])
    a, b = x * 2, (x * x).sum()
    [g] = tv.grad([a, b, a], [x], [np.array([1.0, 10.0]), None, np.array([0.0, 1.0])])
    assert g.tolist() == [2.0 + 2.0, 22.0 + 4.0]


def test_grad_of_an_unused_input_is_an_error_or_none():
    x, y = leaf([1.0]), leaf([2.0])
    with pytest.raises(tv.TapeError, match=r"do not depend on input 1 of grad\(\); pass allow_unused=True"):
        tv.grad((x * x).sum(), [x, y])
    gx, gy = tv.grad((x * x).sum(), [x, y], allow_unused=True)
    assert (gx.tolist(), gy) == ([2.0], None)
    assert tv.grad(constant([1.0]).sum(), [x], allow_unused=True) == [None]


def test_grad_of_an_input_off_the_tape_is_an_error():
    x = leaf([1.0])
    with pytest.raises(tv.TapeError, match=r"input 1 of grad\(\) is not on the tape: make it with requires_grad=True"):
        tv.grad(x.sum(), [x, constant([1.0])])


def test_the_starting_gradient_is_checked_and_cast():
    x = leaf([1.0, 2.0], np.float32)
    y = x * 2
    with pytest.raises(ValueError, match=r"shape \(2,\) needs ∂L/∂y of that shape; only a single number's is 1"):
        y.backward()
    with pytest.raises(ValueError, match=r"shape \(3,\) was given for a Tensor of shape \(2,\)"):
        y.backward(np.ones(3))
    with pytest.raises(tv.TapeError, match="nothing with requires_grad=True"):
        constant([1.0]).sum().backward()
    y.backward(np.array([1.0, 2.0]))
    assert x.grad.dtype == np.float32
    (x * 2).backward([1, 0])
    (x * 2).backward(tv.tensor([0.0, 1.0]))
    assert x.grad.tolist() == [4.0, 6.0]
    (x * 2)[:1].backward()  # one element is a single number, whatever its shape
    assert x.grad.tolist() == [6.0, 6.0]
    x.grad = None
    x.backward(constant([1.0, 1.0], np.float64))
    assert x.grad.dtype == np.float32


# --------------------------------------------------------------------------------------------- higher derivatives


@pytest.mark.parametrize("shape", [(), (3,)])
def test_derivatives_of_a_polynomial_are_exact_to_the_fourth(shape):
    x = leaf(np.full(shape, 2.0))
    y = x**4 - 3 * x * x * x + x / 2
    for expected in [4 * 8 - 9 * 4 + 0.5, 12 * 4 - 18 * 2, 24 * 2 - 18, 24]:
        [y] = tv.grad(y, [x], np.ones(shape), create_graph=True)
        np.testing.assert_array_equal(y.numpy(), np.full(shape, float(expected)), strict=True)


def test_a_hessian_vector_product_equals_the_formula():
    rng = np.random.default_rng(0)
    a, b, v = rng.standard_normal((3, 3)), rng.standard_normal(3), rng.standard_normal(3)
    x = leaf(b)
    y = (x @ a @ x) ** 2
    [g] = tv.grad(y, [x], create_graph=True)
    [hv] = tv.grad((g * v).sum(), [x])
    s = a + a.T
    expected = 2 * np.outer(s @ b, s @ b) + 2 * (b @ a @ b) * s
    np.testing.assert_allclose(hv.numpy(), expected @ v, rtol=1e-12)


def test_backward_with_create_graph_gives_gradients_that_can_be_differentiated():
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    g = x.grad
    x.grad = None
    (g * g).sum().backward()
    assert x.grad.tolist() == [36.0 * 1, 36.0 * 8]


def test_a_recorded_sweep_keeps_the_graph_by_itself():
    x = leaf([2.0])
    y = (x**3).sum()
    assert tv.grad(y, [x], create_graph=True)[0].tolist() == [12.0]
    assert tv.grad(y, [x])[0].tolist() == [12.0]


def test_the_gradient_of_a_gradient_reaches_the_cotangent():
    x, v = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    [g] = tv.grad(x * x, [x], v, create_graph=True)
    assert tv.grad(g.sum(), [v])[0].tolist() == [2.0, 4.0]


# ------------------------------------------------------------------------------------------ who owns a gradient


def test_two_leaves_never_share_a_gradient():
    x, y, v = leaf([1.0, 2.0]), leaf([1.0, 2.0]), np.array([1.0, 1.0])
    (x + y).backward(v)
    assert not share_memory(x.grad, y.grad)
    assert not np.shares_memory(x.grad.numpy(), v)
    (5 * x).sum().backward()
    assert (x.grad.tolist(), y.grad.tolist(), v.tolist()) == ([6.0, 6.0], [1.0, 1.0], [1.0, 1.0])


def test_two_leaves_never_share_a_recorded_gradient_either():
    x, y, v = leaf([1.0, 2.0]), leaf([1.0, 2.0]), constant([1.0, 1.0])
    (x + y).backward(v, create_graph=True)
    (5 * x).sum().backward()
    assert (x.grad.tolist(), y.grad.tolist(), v.tolist()) == ([6.0, 6.0], [1.0, 1.0], [1.0, 1.0])


def test_gradients_from_grad_are_the_callers_to_write_to():
    x, y, v = leaf([1.0, 2.0]), leaf([1.0, 2.0]), np.array([1.0, 1.0])
    gx, gy = tv.grad(x + y, [x, y], v)
    gx[0] = 7.0
    assert (gy.tolist(), v.tolist()) == ([1.0, 1.0], [1.0, 1.0])


def test_a_gradient_is_a_copy_where_the_rule_gives_a_view():
    x, y = leaf([1.0, 2.0]), leaf([1.0, 2.0])
    ops.concatenate([x, y]).backward(v := np.array([1.0, 2.0, 3.0, 4.0]))
    assert not np.shares_memory(x.grad.numpy(), v)
    assert x.grad.numpy().flags.writeable
    x.sum().backward()
    assert (x.grad.tolist(), y.grad.tolist()) == ([2.0, 3.0], [3.0, 4.0])
    z = leaf([1.0, 2.0])
    z.sum().backward()  # a broadcast view, read-only
    z.sum().backward()
    assert z.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("second", [lambda F, g: g, lambda F, g: F.transpose(g)], ids=["same array", "a view of it"])
def test_a_joint_rule_may_give_the_same_memory_for_two_arguments(second):
    @tv.primitive
    def plus(xp, a, b):
        return a + b

    @plus.gradient
    def rule(F, gy):
        g = gy * 1.0
        return g, second(F, g)

    a, b = leaf(np.zeros((2, 2))), leaf(np.zeros((2, 2)))
    plus(a, b).backward(np.ones((2, 2)))
    assert not share_memory(a.grad, b.grad)
    (5 * a).sum().backward()
    assert b.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]

    a, b = leaf(np.zeros((2, 2))), leaf(np.zeros((2, 2)))
    h, k = a * 1.0, b * 1.0
    five = h * 5  # swept after `plus`: its gradient is added to what `plus` gave for h
    (plus(h, k).sum() + five.sum()).backward()
    assert (a.grad.tolist(), b.grad.tolist()) == ([[6.0, 6.0]] * 2, [[1.0, 1.0]] * 2)


def test_a_rule_may_give_a_saved_array_itself():
    @tv.primitive
    def half_square(xp, x):
        return xp.sum(x * x) / 2

    half_square.gradients(x=lambda F, gy, x: x)  # right for gy = 1
    x = leaf([1.0, 2.0])
    h = x * 3
    other = h.sum()
    (half_square(h) + other).backward()
    assert h.tolist() == [3.0, 6.0]
    assert x.grad.tolist() == [12.0, 21.0]
    x.grad = None
    half_square(x).backward()
    half_square(x).backward()
    assert x.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("recorded", [False, True])
def test_adding_to_a_gradient_that_a_graph_uses_stops_its_sweep_or_leaves_it_alone(recorded):
    x, w = leaf([1.0, 2.0]), leaf([1.0, 1.0])
    (x * x * x).sum().backward(create_graph=recorded)
    z = (w * x.grad).sum()
    (4 * x).sum().backward()
    try:
        [g] = tv.grad(z, [w])
    except tv.TapeError as error:
        g = error
    assert isinstance(g, tv.TapeError) or g.tolist() == [3.0, 12.0]
    assert x.grad.tolist() == [7.0, 16.0]


def test_the_grad_of_a_leaf_can_be_set_and_is_checked():
    x = leaf([1.0, 2.0])
    x.grad = constant([1.0, 1.0])
    x.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"shape \(3,\) does not fit a Tensor of shape \(2,\)"):
        x.grad = constant([1.0, 2.0, 3.0])
    with pytest.raises(tv.TapeError, match="only a leaf"):
        (x * 2).grad = constant([1.0, 1.0])
    assert (x * 2).grad is None


# ------------------------------------------------------------------------------------------------- ops of a user's own


def test_a_users_op_with_a_joint_rule_a_residue_and_constants():
    @tv.primitive
    def scaled_norm(xp, x, factor, power=2):
        norm = xp.sqrt(xp.sum(x**power))
        return factor * norm, norm

    @scaled_norm.gradient
    def rule(F, gy, x, factor, residue):
        return gy * factor * x / residue, gy * residue

    x, factor = leaf([3.0, 4.0]), leaf(2.0)
    assert scaled_norm(x, factor).item() == 10.0
    tv.gradcheck(scaled_norm, [x, factor])
    scaled_norm(x, factor=factor).backward()
    np.testing.assert_allclose(x.grad.numpy(), [1.2, 1.6])
    assert factor.grad.item() == 5.0
    assert repr(scaled_norm) == "<primitive scaled_norm(x, factor, power=2)>"


def test_a_users_op_with_several_results():
    @tv.primitive
    def polar(xp, a, b):
        return xp.sqrt(a * a + b * b), xp.arctan2(b, a)

    @polar.gradient
    def rule(F, gy, a, b):
        (gr, gt), square = gy, a * a + b * b
        return gr * a / F.sqrt(square) - gt * b / square, gr * b / F.sqrt(square) + gt * a / square

    a, b = leaf([3.0, 1.0]), leaf([4.0, -1.0])
    radius, angle = polar(a, b)
    assert radius.tolist() == pytest.approx([5.0, 2**0.5])
    assert angle.tolist() == pytest.approx([np.arctan2(4, 3), -np.pi / 4])
    tv.gradcheck(polar, [a, b])
    tv.gradgradcheck(polar, [a, b])
    tv.gradgradcheck(lambda a, b: polar(a, b)[1], [a, b])  # the other result was never used
    tv.gradgradcheck(lambda a: polar(a, a * a)[0] * a, [a])


def test_a_rule_may_ask_for_all_results_and_is_differentiated_through_them():
    @tv.primitive
    def waves(xp, x):
        return xp.exp(x), xp.sin(x)

    @waves.gradient
    def rule(F, gy, x, y):
        return (gy[0] * y[0] + gy[1] * F.cos(x) * y[0] / y[0],)

    for f in (waves, lambda x: waves(x)[0], lambda x: waves(x)[1], lambda x: [y * y for y in waves(x)]):
        tv.gradcheck(f, [leaf([0.3, 0.8])])
        tv.gradgradcheck(f, [leaf([0.3, 0.8])])


def test_a_rule_may_ask_for_one_of_several_results_and_nothing_else_is_kept():
    @tv.primitive
    def waves(xp, x, y1):
        return xp.exp(x), xp.sin(x) * y1

    @waves.gradient
    def rule(F, gy, x, y0, y1):  # an argument's name means the argument
        return gy[0] * y0 + gy[1] * F.cos(x) * y1, gy[1] * F.sin(x)

    x, y1 = leaf([0.3, 0.8]), leaf([2.0, -1.0])
    grown, swung = waves(x, y1)
    assert list(grown.node.parents[0].saved) == ["x", "y0", "y1"]
    assert grown.node.parents[0].saved["y0"] is grown.data
    for f in (waves, lambda x, y1: waves(x, y1)[0] * y1, lambda x, y1: [y * y for y in waves(x, y1)]):
        tv.gradcheck(f, [x, y1])
        tv.gradgradcheck(f, [x, y1])
    grown.detach()[0] = 9.0
    with pytest.raises(tv.TapeError, match="`waves` saved its result for the backward sweep, and it was overwritten"):
        swung.sum().backward()


@pytest.mark.parametrize(("results", "says"), [(1, "one result, which is `y`"), (2, "2 results")])
def test_a_rule_that_asks_for_a_result_that_is_not_there_is_told_so(results, says):
    @tv.primitive
    def copies(xp, x):
        return (x * 1, x * 1)[:results] if results > 1 else x * 1

    copies.gradients(x=lambda F, gy, y2: gy * y2)
    with pytest.raises(tv.TapeError, match=f"a rule of `copies` asks for `y2`, and `copies` gives {says}"):
        copies(leaf([1.0, 2.0, 3.0]))


def test_all_results_that_a_rule_asks_for_notice_that_they_were_overwritten():
    @tv.primitive
    def waves(xp, x):
        return xp.exp(x), xp.exp(x) * 2

    waves.gradient(lambda F, gy, y: (gy[0] * y[0] + gy[1] * y[1],))
    for i in (0, 1):
        results = waves(leaf([0.3, 0.8]))
        loss = results[1 - i].sum()
        results[i].detach()[...] = 9.0
        with pytest.raises(tv.TapeError, match="its result"):
            loss.backward()


def test_a_fused_op_with_several_results_is_differentiated_twice():
    @tv.primitive(twin=lambda F, x: (F.sin(x), F.cos(x)))
    def circle(xp, x):
        return xp.sin(x), xp.cos(x)

    @circle.gradient
    def rule(F, gy, x):
        return (gy[0] * F.cos(x) - gy[1] * F.sin(x),)

    tv.gradcheck(circle, [leaf([0.3, 0.8])])
    tv.gradgradcheck(circle, [leaf([0.3, 0.8])])
    tv.gradgradcheck(lambda x: circle(x)[1], [leaf([0.3, 0.8])])


def test_a_users_op_with_a_twin_is_differentiated_twice():
    twin = lambda F, x, w: F.sum(F.tanh(x) * w)

    @tv.primitive(twin=twin)
    def score(xp, x, w):
        y = xp.tanh(x)
        return xp.sum(y * w), y

    @score.gradient
    def rule(xp, gy, w, residue):
        return gy * w * (1 - residue * residue), gy * residue

    x, w = leaf([0.3, -0.8]), leaf([1.0, 2.0])
    tv.gradcheck(score, [x, w])
    tv.gradgradcheck(score, [x, w])
    tv.gradgradcheck(lambda x: score(x, x), [x])


def test_a_twin_with_another_gradient_than_the_fused_rule_is_caught():
    @tv.primitive(twin=lambda F, x: F.sum(x**3))
    def square_sum(xp, x):
        return xp.sum(x * x)

    square_sum.gradients(x=lambda F, gy, x: gy * 2 * x)
    x = leaf([1.5, 2.0])
    tv.gradcheck(square_sum, [x])
    with pytest.raises(tv.GradcheckError):
        tv.gradgradcheck(square_sum, [x])


def test_a_missing_rule_is_named_when_the_op_is_recorded_and_only_then():
    @tv.primitive
    def scale(xp, x, factor):
        return x * factor

    scale.gradients(x=lambda F, gy, factor: gy * factor)
    assert scale(leaf([1.0]), constant([2.0])).tolist() == [2.0]
    message = r"`scale` has no backward rule for its argument 'factor': declare one with scale\.gradients\(factor=…\)"
    with pytest.raises(tv.TapeError, match=message):
        scale(constant([1.0]), leaf([2.0]))
    with tv.no_grad():
        assert scale(constant([1.0]), leaf([2.0])).tolist() == [2.0]


def test_a_variadic_op_without_a_rule_says_so():
    @tv.primitive
    def total(xp, *arrays):
        return sum(arrays)

    assert total(constant([1.0]), constant([2.0])).tolist() == [3.0]
    with pytest.raises(tv.TapeError, match="`total` has no backward rule"):
        total(leaf([1.0]), leaf([2.0]))


def test_a_rule_for_an_argument_that_does_not_exist_is_refused():
    @tv.primitive
    def scale(xp, x, factor):
        return x * factor

    with pytest.raises(TypeError, match=r"`scale` has no argument \['z'\]; its arguments are \['x', 'factor'\]"):
        scale.gradients(z=lambda F, gy: gy)
    with pytest.raises(TypeError, match=r"a rule of `scale` asks for \['facto'\]; there is .*'factor'.*'factor_shape'"):
        scale.gradients(x=lambda F, gy, facto: gy * facto)
    with pytest.raises(TypeError, match="asks for"):
        scale.gradient(lambda F, gy, outputs: gy)


@pytest.mark.parametrize("name", ["y", "residue", "inputs"])
def test_an_argument_with_a_name_that_means_something_to_rules_is_refused(name):
    """A rule that asks for `y` gets the result; an argument of that name would silently never arrive."""
    scope = {}
    exec(f"def scale(xp, x, {name}):\n    return x * {name}", scope)
    with pytest.raises(TypeError, match=f"`scale`.*'{name}'"):
        tv.primitive(scope["scale"])


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 3), ()])
def test_a_gradient_of_the_wrong_shape_names_the_op_and_both_shapes(shape):
    @tv.primitive
    def double(xp, x):
        return x * 2

    double.gradients(x=lambda F, gy: np.ones(shape))
    message = re.escape(f"a backward rule of `double` gave a gradient of shape {shape} for a value of shape (2,)")
    with pytest.raises(tv.TapeError, match=message):
        double(leaf([1.0, 2.0])).backward(np.ones(2))


def test_a_joint_rule_that_forgets_an_argument_is_an_error():
    @tv.primitive
    def product(xp, a, b):
        return a * b

    product.gradient(lambda F, gy, a, b: (gy * b,))
    with pytest.raises(tv.TapeError, match="`product`"):
        product(leaf([1.0]), leaf([2.0])).backward()


def test_a_gradient_that_is_no_array_is_an_error_that_names_the_op():
    @tv.primitive
    def double(xp, x):
        return x * 2

    double.gradients(x=lambda F, gy: 2.0)
    with pytest.raises((tv.TapeError, TypeError), match="`double`"):
        double(leaf([1.0])).backward()


def test_a_joint_rule_that_gives_an_array_instead_of_a_tuple_is_an_error_that_says_so():
    @tv.primitive
    def double(xp, x):
        return x * 2

    double.gradient(lambda F, gy: gy * 2)
    with pytest.raises((tv.TapeError, TypeError), match=r"`double`.*tuple"):
        double(leaf([[1.0], [2.0]])).backward(np.ones((2, 1)))


# --------------------------------------------------------------------------------------------------- the judge


def test_gradcheck_names_the_input_the_element_both_values_and_the_tolerance():
    @tv.primitive
    def product(xp, a, b):
        return a * b

    product.gradients(a=lambda F, gy, b: gy * b, b=lambda F, gy, a: gy * a * np.array([1.0, 1.0, 1.5]))
    message = (
        r"^product: the gradient of input 1 is wrong at element \(2,\), for element \(2,\) of the result: "
        r"the rule gives 4\.5, differences give 3 \(tolerance 3e-07; 1 of 9 elements of the Jacobian fail\)$"
    )
    with pytest.raises(tv.GradcheckError, match=message):
        tv.gradcheck(product, [leaf([1.0, 2.0, 3.0]), leaf([4.0, 5.0, 6.0])])
    tv.gradcheck(product, [leaf([1.0, 2.0, 3.0]), constant([4.0, 5.0, 6.0])])  # the wrong rule is not asked


WRONG_RULES = {
    "zero": lambda F, gy, y: F.zeros_like(gy),
    "the sum left out": lambda F, gy, y: y * gy,
    "the sign turned": lambda F, gy, y: -y * (gy - F.sum(gy * y, axis=-1, keepdims=True)),
    "NaN": lambda F, gy, y: gy * float("nan"),
    "one part in a thousand": lambda F, gy, y: 1.001 * y * (gy - F.sum(gy * y, axis=-1, keepdims=True)),
}


@pytest.mark.parametrize("name", WRONG_RULES)
def test_gradcheck_catches_a_wrong_softmax_rule(name):
    """Σ softmax is constant: a judge that only summed the results would let a rule that returns zeros pass."""

    @tv.primitive
    def softmax(xp, x):
        e = xp.exp(x)
        return e / xp.sum(e, axis=-1, keepdims=True)

    softmax.gradients(x=WRONG_RULES[name])
    with pytest.raises(tv.GradcheckError, match="softmax: the gradient of input 0 is wrong"):
        tv.gradcheck(softmax, leaf([[0.1, 0.7, -0.3]]))


def test_gradcheck_catches_a_gradient_that_never_arrives():
    with pytest.raises(tv.GradcheckError, match="the rule gives 0"):
        tv.gradcheck(lambda x: x.detach() * 2, [leaf([1.0])])


def test_gradgradcheck_catches_a_rule_that_leaves_the_tape():
    @tv.primitive
    def cube(xp, x):
        return x * x * x

    cube.gradients(x=lambda F, gy, x: gy * (3 * np.asarray(getattr(x, "data", x)) ** 2))
    tv.gradcheck(cube, [leaf([1.0, 2.0])])
    with pytest.raises(tv.GradcheckError):
        tv.gradgradcheck(cube, [leaf([1.0, 2.0])])

    off = tv.primitive(lambda xp, x: x * x * x)
    off.gradients(x=lambda F, gy, x: tv.tensor(gy) * (3 * tv.tensor(x) ** 2) if F is ops else gy * (3 * x * x))
    tv.gradcheck(off, [leaf([1.0, 2.0])])
    with pytest.raises(tv.GradcheckError):
        tv.gradgradcheck(off, [leaf([1.0, 2.0])])


def test_gradcheck_refuses_what_it_cannot_judge():
    with pytest.raises(TypeError, match="input 1 is float32; differences need float64"):
        tv.gradcheck(ops.add, [leaf([1.0]), leaf([1.0], np.float32)])
    for check in (tv.gradcheck, tv.gradgradcheck):
        with pytest.raises(TypeError, match="no input has requires_grad=True"):
            check(ops.exp, [constant([1.0])])
    tv.gradcheck(ops.multiply, [leaf([1.0]), constant([2.0], np.float32)])  # a constant may be narrow


def test_gradcheck_leaves_inputs_as_they_were_also_after_an_exception():
    x, calls = leaf([1.0, 2.0]), []

    def breaks(x):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("in the middle of a difference")
        return x * 2

    with pytest.raises(RuntimeError):
        tv.gradcheck(breaks, [x])
    assert x.tolist() == [1.0, 2.0]
    tv.gradcheck(ops.exp, [x])
    tv.gradgradcheck(ops.exp, [x])
    assert x.tolist() == [1.0, 2.0]
    assert x.grad is None


def test_the_settings_of_gradcheck_count():
    noisy = lambda x: ops.multiply(x, x) + 1e-4 * ops.sin(1e3 * x.detach())
    with pytest.raises(tv.GradcheckError):
        tv.gradcheck(noisy, [leaf([1.0])])
    tv.gradcheck(noisy, [leaf([1.0])], rtol=0.1)
    tv.gradcheck(noisy, [leaf([1.0])], atol=1.0)
    rippled = lambda x: x * x + 1e-9 * ops.sin(1e8 * x.detach())
    with pytest.raises(tv.GradcheckError, match="the differences themselves settle to no better than ±"):
        tv.gradcheck(rippled, [leaf([1.0])])
    tv.gradcheck(rippled, [leaf([1.0])], eps=0.5)  # a large step looks past the ripple


# -------------------------------------------------------------------------------------------- the Tensor's contracts


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1, np.float32),
        (1.5, np.float32),
        ([1, 2], np.float32),
        ([[1.0], [2.0]], np.float32),
        ([], np.float32),
        (True, np.bool_),
        ([True, False], np.bool_),
        ([True, 2], np.float32),
        (range(3), np.float32),
        ((1.0, 2.0), np.float32),
        (np.float64(1.5), np.float64),
        (np.arange(3), np.int64),
        (np.zeros(2, np.float16), np.float16),
        (np.zeros(2, np.uint8), np.uint8),
    ],
    ids=repr,
)
def test_numbers_become_float32_and_arrays_keep_their_dtype(data, dtype):
    x = tv.tensor(data)
    assert x.dtype == dtype
    np.testing.assert_array_equal(x.numpy(), np.asarray(data))
    assert tv.tensor(data, dtype=np.float64).dtype == np.float64


def test_a_tensor_is_made_of_a_copy_off_the_tape():
    a = np.array([1.0, 2.0])
    x = tv.tensor(a, requires_grad=True)
    y = tv.tensor(x * 2)
    z = tv.tensor(x)
    a[0] = 9.0
    assert (x.tolist(), y.tolist()) == ([1.0, 2.0], [2.0, 4.0])
    assert not y.requires_grad
    assert not np.shares_memory(x.numpy(), z.numpy())


@pytest.mark.parametrize(
    "data", ["abc", "3", ["1", "2"], None, [1, None], 1j, np.array(["a"]), np.array([1j]), object()]
)
def test_what_is_no_number_is_refused(data):
    with pytest.raises(TypeError):
        tv.tensor(data)


@pytest.mark.parametrize("data", [np.arange(3), np.array([True]), [True]], ids=repr)
def test_integers_and_bools_never_carry_a_gradient(data):
    message = "a gradient needs floating-point numbers, not (int64|bool): convert with dtype=np.float32"
    with pytest.raises(TypeError, match=message):
        tv.tensor(data, requires_grad=True)
    x = tv.tensor(data)
    with pytest.raises(TypeError, match=message):
        x.requires_grad = True
    assert tv.tensor(data, dtype=np.float32, requires_grad=True).requires_grad
    assert not (leaf([1.0]) > 0).requires_grad
    assert not ops.argmax(leaf([1.0])).requires_grad


def test_values_leave_as_arrays_and_python_numbers():
    x = tv.tensor([[1.0, 2.0]], dtype=np.float64)
    assert np.shares_memory(x.numpy(), x.data)
    assert x.tolist() == [[1.0, 2.0]]
    assert type(x[0, 1].item()) is float
    assert (x.shape, x.ndim, x.size, x.dtype, x.device) == ((1, 2), 2, 2, np.float64, "cpu")
    number = tv.tensor(np.int64(3))
    assert (float(number), int(number), [10, 11, 12, 13][number], bool(number)) == (3.0, 3, 13, True)
    assert range(5)[tv.tensor(np.array(2))] == 2
    assert bool(tv.tensor([0.0])) is False
    for convert, error in [(bool, ValueError), (float, TypeError), (lambda t: t.item(), ValueError)]:
        with pytest.raises(error):
            convert(x)
    with pytest.raises(TypeError):
        [1, 2][tv.tensor(1.0)]


def test_numpy_takes_a_constant_and_refuses_to_lose_a_gradient():
    c = constant([1.0, 2.0])
    assert np.shares_memory(np.asarray(c), c.data)
    assert not np.shares_memory(np.array(c), c.data)
    assert np.asarray(c, dtype=np.float32).dtype == np.float32
    assert np.stack([c, c]).shape == (2, 2)
    with pytest.raises(ValueError, match="copy"):
        np.array(c, dtype=np.float32, copy=False)
    for x in (leaf([1.0]), leaf([1.0]) * 2):
        with pytest.raises(
            TypeError, match=r"lose this Tensor's gradient: use tinyvit\.ops, or x\.detach\(\)\.numpy\(\)"
        ):
            np.asarray(x)
    with pytest.raises(TypeError, match="ufunc"):
        np.sin(c)


def test_a_tensor_has_a_length_and_iterates_along_its_first_axis():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2
    first, second = x
    (first * second).sum().backward()
    assert x.grad.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    number = leaf(1.0)
    with pytest.raises(TypeError, match="0-d Tensor has no axis to iterate over"):
        iter(number)
    with pytest.raises(TypeError):
        len(number)


def test_a_detached_tensor_shares_memory_and_stops_the_gradient():
    x = leaf([1.0, 2.0])
    d = x.detach()
    assert share_memory(d, x)
    assert not d.requires_grad
    (x * d).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0]


def test_requires_grad_can_be_switched_on_leaves_only():
    x = constant([1.0])
    assert x.is_leaf
    x.requires_grad = True
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2.0]
    x.requires_grad = True  # again: the gradient stays
    assert x.grad.tolist() == [2.0]
    x.requires_grad = False
    assert x.grad is None
    y = leaf([1.0]) * 2
    assert not y.is_leaf
    with pytest.raises(tv.TapeError, match=r"leaf only; take x\.detach\(\)"):
        y.requires_grad = False


def test_tensors_are_hashed_by_identity_and_compared_by_element():
    x, y = constant([1.0, 2.0]), constant([1.0, 2.0])
    assert x in {x, y}
    assert len({x, y, x}) == 2
    assert constant([1.0, 2.0]) not in {x, y}
    assert {x: "x", y: "y"}[y] == "y"
    assert (x == y).tolist() == [True, True]
    assert (x != 2).tolist() == [True, False]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (lambda: tv.tensor([1.0, 2.5]), "Tensor([1. , 2.5], dtype=float32)"),
        (lambda: tv.tensor(3.0, requires_grad=True), "Tensor(3., dtype=float32, requires_grad=True)"),
        (lambda: leaf([[1.0], [2.0]]) * 2, "Tensor([[2.],\n        [4.]], dtype=float64, op=multiply)"),
        (lambda: ops.split(leaf([1.0, 2.0]), 2)[1], "Tensor([2.], dtype=float64, op=split)"),
        (lambda: leaf([1.0])[0], "Tensor(1., dtype=float64, op=getitem)"),
        (lambda: tv.tensor(np.array([True])), "Tensor([ True], dtype=bool)"),
        (lambda: tv.tensor(np.arange(200)), "Tensor([  0,   1,   2, ..., 197, 198, 199], shape=(200,), dtype=int64)"),
        (lambda: tv.tensor([]), "Tensor([], dtype=float32)"),
        (lambda: ops.softmax, "<primitive softmax(x, axis=-1)>"),
    ],
)
def test_what_is_printed(x, expected):
    assert repr(x()) == expected


def test_a_node_prints_its_number_op_and_shape():
    y = leaf([1.0, 2.0]) * 2
    assert repr(y.node) == f"<Node {y.node.number}: multiply (2,)>"
    assert repr(leaf([1.0]).node).endswith(": Leaf (1,)>")
    assert tape.mode.recording


# --------------------------------------------------------------------------------- what a review found, mended


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (x**3).sum(),  # a rule that uses an argument
        lambda x: ops.sin(x).sum(),
        lambda x: ops.exp(x).sum(),  # a rule that uses the result
        lambda x: ops.gelu(x).sum(),  # a twin
        lambda x: ops.einsum("i,i->", x, x),  # several inputs
    ],
)
def test_a_value_overwritten_between_two_recorded_sweeps_is_noticed_or_makes_no_difference(f):
    def second(overwrite):
        x = leaf([1.0, 2.0])
        [g] = tv.grad(f(x), [x], create_graph=True)
        if overwrite:
            with tv.no_grad():
                x[0] = 100.0
        return tv.grad(g.sum(), [x])[0].tolist()

    try:
        found = second(overwrite=True)
    except tv.TapeError as error:
        found = str(error)
    assert found == second(overwrite=False) or "overwritten since" in found


def test_an_integer_beside_a_floating_point_result_carries_no_gradient():
    @tv.primitive
    def top(xp, x):
        return xp.max(x), xp.argmax(x)

    top.gradient(lambda F, gy, x: (F.where(x == F.max(x), gy[0], 0.0),))
    x = leaf([1.0, 3.0])
    largest, where = top(x)
    assert isinstance(largest.data, type(x.data))
    assert not where.requires_grad
    largest.backward()
    assert x.grad.tolist() == [0.0, 1.0]


def test_threads_that_sweep_onto_one_leaf_lose_no_gradient():
    x = leaf(np.zeros(100_000))

    def work():
        for _ in range(30):
            (x * 1.0).backward(np.ones(x.shape))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert x.grad.numpy().min() == x.grad.numpy().max() == 120.0


def test_a_gradient_can_be_taken_down_to_a_value_whose_own_graph_was_swept():
    x = leaf([1.0, 2.0])
    h = x * 3
    h.sum().backward()
    assert tv.grad((h * h).sum(), [h])[0].tolist() == [6.0, 12.0]
    with pytest.raises(tv.TapeError, match="retain_graph=True"):
        tv.grad((h * h).sum(), [x])


def test_a_partial_sweep_that_ends_at_a_part_leaves_it_for_another():
    x = tv.tensor(np.ones(4), requires_grad=True)
    p, _ = tv.ops.split(x * 1.0, 2)
    first, second = p.sum(), (p * p).sum()
    [g] = tv.grad(first, [p])
    np.testing.assert_array_equal(g.numpy(), [1.0, 1.0])
    second.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 2.0, 0.0, 0.0])


def test_an_input_that_no_output_leads_to_gets_none_and_nothing_is_swept():
    x, unrelated = tv.tensor([1.0], requires_grad=True), tv.tensor([1.0], requires_grad=True)
    y = (x * x).sum()
    assert tv.grad(y, [unrelated], allow_unused=True) == [None]
    y.backward()
    assert x.grad.item() == 2.0
