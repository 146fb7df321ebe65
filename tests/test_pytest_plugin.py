"""The pytest plugin in sessions of its own, and the page that teaches it."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine import backend as backends
from tinyvit.engine import kernels
from tinyvit.study import audit as audits

pytest_plugins = ["pytester"]
PAGE = Path(__file__).parent.parent / "docs" / "write_an_op.md"

OPS = """
import numpy as np
import pytest
import tinyvit as tv
from tinyvit.engine.backend import default_namespace

@tv.primitive
def cube(xp, x):
    return x * x * x
cube.gradients(x=lambda F, gy, x: 3 * gy * x * x)

@tv.primitive
def wrong(xp, x):
    return x * x * x
wrong.gradients(x=lambda F, gy, x: 2 * gy * x * x)

@tv.primitive
def wrong_twice(xp, x):  # the residue is a constant for a second sweep, and there is no twin
    return x * x * x, x * x
wrong_twice.gradients(x=lambda F, gy, residue: 3 * gy * residue)
"""


@pytest.fixture(autouse=True)
def no_kernels():
    """A session inside this process unloads what it has imported, and Numba does not survive to be imported twice."""
    with kernels.switched(False):
        yield


@pytest.fixture
def session(pytester):
    """Run a test file, with strict settings, in a session of its own; its result."""

    def run(tests, *arguments):
        pytester.makepyfile(test_it=OPS + tests)
        return pytester.runpytest_inprocess("--strict-markers", "-Werror", "-rs", *arguments)

    return run


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without CuPy."""

    def load():
        raise tv.BackendError("no CuPy here")

    monkeypatch.setattr(backends, "_load_cupy", load)


@pytest.fixture
def made_there(monkeypatch):
    """A machine with a GPU, which is NumPy by another name; the list of arrays that were made there."""
    there = backends.Namespace(np, "gpu", backends.NUMPY.erf)
    made = []
    there.asarray = lambda *arguments, **named: (made.append(arguments), np.asarray(*arguments, **named))[1]
    monkeypatch.setattr(backends, "_load_cupy", lambda: there)
    return made


# ------------------------------------------------------------------------------------------------------------ gradcheck


def test_a_right_op_passes(session):
    session(
        """
def test_lists(gradcheck):
    gradcheck(cube, [[1.0, 2.0], [3.0, -4.0]])
def test_numbers_arrays_and_tensors(gradcheck):
    gradcheck(lambda a, b, c: a * b + cube(c), 2.0, np.float32([1, 2]), tv.tensor(np.ones(2), requires_grad=True))
"""
    ).assert_outcomes(passed=2)


def test_a_wrong_op_fails_with_input_element_both_values_and_tolerance(session):
    result = session("def test_it(gradcheck):\n    gradcheck(lambda a, b: a + wrong(b), [1.0], [1.0, -2.0])\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        "E*GradcheckError: <lambda>: the gradient of input 1 is wrong at element (1,), for element (1,) of the result: "
        "the rule gives 8, differences give 12 (tolerance 1.2e-06; *"
    )


@pytest.mark.parametrize("call", ["gradcheck(wrong, [1.0])", "audit(wrong, [1.0])"])
def test_a_failure_shows_the_test_and_no_engine(session, call):
    result = session(f"def test_it(gradcheck, audit):\n    x = 1\n    {call}\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f">       {call}", "E *GradcheckError: wrong*", "test_it.py:*: GradcheckError"])
    result.stdout.no_fnmatch_line("*gradcheck.py:*")
    result.stdout.no_fnmatch_line("*tinyvit_pytest.py*")


def test_the_judges_other_complaints_are_short_too(session):
    result = session("def test_it(gradcheck):\n    gradcheck(cube, tv.tensor([1.0], requires_grad=True))\n")
    result.stdout.fnmatch_lines("E *TypeError: gradcheck: input 0 is float32; differences need float64")
    result.stdout.no_fnmatch_line("*gradcheck.py:*")


def test_an_error_in_a_rule_shows_the_rule(session):
    result = session(
        """
@tv.primitive
def broken(xp, x):
    return x * 1
@broken.gradient
def broken_rule(F, gy, x):
    raise RuntimeError("in the rule")
def test_it(gradcheck):
    gradcheck(broken, [1.0])
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">*raise RuntimeError*", "E *RuntimeError: in the rule"])


def test_second_order_is_checked_unless_the_order_is_one(session):
    result = session(
        """
def test_two(gradcheck):
    gradcheck(wrong_twice, [1.0])
def test_one(gradcheck):
    gradcheck(wrong_twice, [1.0], order=1)
def test_three(gradcheck):
    gradcheck(wrong_twice, [1.0], order=3)
"""
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["E *the gradient of wrong_twice: *", "E *order is 1 or 2, not 3"])


def test_kinks_fail_unless_allowed(session):
    result = session(
        """
def test_on_a_kink(gradcheck):
    gradcheck(tv.ops.relu, [1.0, 0.0])
def test_allowed(gradcheck):
    gradcheck(tv.ops.relu, [1.0, 0.0], kinks="allow")
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("E *relu has no slope by input 0 at element (1,)*a kink, 0 on one side and 1 on*")


def test_settings_reach_the_judge(session):
    session(
        """
def test_tolerance(gradcheck):
    gradcheck(wrong, [1.0], order=1, rtol=0.5)
def test_complex_steps(gradcheck):
    gradcheck(cube, [1.0], complex_steps=True)
def test_complex_steps_need_an_analytic_function(gradcheck):
    with pytest.raises(ValueError, match="complex numbers|not analytic"):
        gradcheck(lambda x: tv.ops.abs(x) * 1.0, [1.0], complex_steps=True)
def test_a_slip(gradcheck):
    with pytest.raises(TypeError, match="rtool"):
        gradcheck(cube, [1.0], rtool=0.5)
"""
    ).assert_outcomes(passed=4)


def test_integers_bools_and_other_tensors_are_constants(session):
    session(
        """
def test_constants(gradcheck):
    seen = []
    def f(x, rows, mask, scale):
        seen.append([rows.requires_grad, mask.requires_grad, scale.requires_grad])
        assert (rows.dtype.kind, mask.dtype.kind) == ("i", "b")
        return tv.ops.where(mask, cube(x[rows]), 0.0) * scale
    gradcheck(f, [1.0, 2.0, 3.0], [0, 2], np.array([True, False]), tv.tensor(np.array([5.0])))
    assert seen and not any(map(any, seen))
def test_nothing_else(gradcheck):
    with pytest.raises(TypeError, match="no input carries a gradient"):
        gradcheck(cube, [1, 2])
"""
    ).assert_outcomes(passed=2)


# -------------------------------------------------------------------------------------------------------------- backend

DEVICES = """
def test_it(backend, gradcheck):
    gradcheck(cube, [1.0, 2.0])
    assert default_namespace().device == {"numpy": "cpu", "cupy": "gpu"}[backend]
    print("ran on", backend)
def test_then():
    assert default_namespace().device == "cpu"
"""


def test_cupy_is_skipped_where_it_is_missing(session, no_gpu):
    result = session(DEVICES)
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines("SKIPPED*no CuPy here*")


def test_a_test_runs_on_both_backends_and_gradcheck_makes_its_arrays_there(session, made_there):
    result = session(DEVICES, "-s")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*ran on numpy*", "*ran on cupy*"])
    assert any(np.array_equal(array[0], [1.0, 2.0]) for array in made_there)


def test_the_backend_is_put_back_after_a_failure(session, made_there):
    result = session(DEVICES.replace("print(", "assert not ("))
    result.assert_outcomes(passed=1, failed=2)


def test_the_option_chooses(session, made_there):
    session(DEVICES, "--tinyvit-backends", "cupy").assert_outcomes(passed=2)
    assert made_there
    made_there.clear()
    session(DEVICES, "--tinyvit-backends=numpy").assert_outcomes(passed=2)
    assert not made_there
    session(DEVICES, "--tinyvit-backends=numpy, cupy").assert_outcomes(passed=3)


def test_a_backend_that_was_asked_for_must_be_there(session, no_gpu):
    result = session(DEVICES, "--tinyvit-backends=cupy")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*asked for by --tinyvit-backends: no CuPy here*")


@pytest.mark.parametrize("names", ["torch", "numpy,cuda", ""])
def test_an_unknown_backend_is_a_usage_error(session, names):
    result = session(DEVICES, f"--tinyvit-backends={names}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    name = names.split(",")[-1]
    result.stderr.fnmatch_lines(f"*--tinyvit-backends: unknown backend '{name}': give numpy, cupy or numpy,cupy")


def test_the_marker_gpu_selects(session, made_there):
    session(DEVICES, "-m", "not gpu").assert_outcomes(passed=2, deselected=1)
    session(DEVICES, "-m", "gpu").assert_outcomes(passed=1, deselected=2)


def test_the_marker_is_registered_once(pytester):
    assert _gpu_markers(pytester) == ["@pytest.mark.gpu: needs an NVIDIA GPU and CuPy"]
    pytester.makeini("[pytest]\nmarkers = gpu: of their own")
    assert _gpu_markers(pytester) == ["@pytest.mark.gpu: of their own"]


def _gpu_markers(pytester):
    return [line for line in pytester.runpytest_inprocess("--markers").outlines if "mark.gpu" in line]


def test_a_users_own_fixtures_take_precedence(session, no_gpu):
    session(
        """
@pytest.fixture(params=["mine", "yours", "ours"])
def backend(request):
    return request.param
@pytest.fixture
def audit():
    return "books"
def test_it(backend, audit):
    assert backend in ("mine", "yours", "ours") and audit == "books"
"""
    ).assert_outcomes(passed=3)


# ---------------------------------------------------------------------------------------------------------------- audit


def test_the_audit_passes_and_fails(session, no_gpu):
    result = session(
        """
@tv.primitive
def wide(xp, x):
    return 2 * x.astype("float64")  # whatever dtype came in
wide.gradients(x=lambda F, gy: 2 * gy)
def test_right(audit):
    audit(lambda x, rows: cube(x[rows]), [1.0, -2.0], [0, 0])
def test_judge_alone(gradcheck):
    gradcheck(wide, [1.0])
def test_wide(audit):
    audit(wide, [1.0])
def test_kink(audit):
    audit(tv.ops.relu, [1.0, 0.0])
def test_kink_allowed(audit):
    audit(tv.ops.relu, [1.0, 0.0], kinks="allow")
"""
    )
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        ["E *wide: (1,): float32 is not kept (in float32)*", "E *move the inputs off the kinks*"]
    )


def test_the_audit_runs_on_the_backend_of_the_test(session, monkeypatch):
    devices = []
    monkeypatch.setattr(audits, "run", lambda samples, device, **_: devices.append(device) or audits.Report((), 0.0))
    monkeypatch.setattr(backends, "_load_cupy", lambda: backends.Namespace(np, "gpu", backends.NUMPY.erf))
    session("def test_it(backend, audit):\n    audit(cube, [1.0])\n").assert_outcomes(passed=2)
    assert devices == ["cpu", "gpu"]


# ------------------------------------------------------------------------------------------------------------- its cost


def test_unused_it_imports_neither_tinyvit_nor_numpy(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    print('LOADED', [m for m in ('tinyvit_pytest', 'tinyvit', 'numpy') if m in sys.modules])\n"
    )
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-s", "-Werror", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean)
    assert "LOADED ['tinyvit_pytest']" in ran.stdout, ran.stdout + ran.stderr


# ------------------------------------------------------------------------------------------------------------- the page


def ops_of_the_page():
    """The definitions of the page, of which it says that they make up my_ops.py; wrong rules are overwritten later."""
    sources = [example.source for example in doctest.DocTestParser().get_examples(PAGE.read_text("utf-8"))]
    return "".join(s for s in sources if re.match(r"import |@|def |\w+\.gradients\(", s))


@pytest.fixture
def page_session(pytester, no_gpu):
    """Run the test file of the page, with its ops or others."""

    def run(ops):
        [tests] = re.findall(r"^```python test\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        pytester.makepyfile(my_ops=ops, test_my_ops=tests)
        pytester.syspathinsert()
        return pytester.runpytest_inprocess("--strict-markers", "-Werror", "-x")

    return run


def test_the_test_file_of_the_page_passes(page_session):
    outcomes = page_session(ops_of_the_page()).parseoutcomes()
    assert set(outcomes) == {"passed", "skipped"}
    assert outcomes["passed"] >= 15


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("F.exp(-x)", "F.exp(x)"),
        ("gy * (b / y)", "gy * (y / b)"),
        ("F.where(x < 1, -gy, 0)", "F.where(x < 1, -gy, -2 * gy)"),
        ("s + x * s * (1 - s)", "s + x * s"),
        ("gb *= 1 - residue", "pass"),
        ("a * F.sigmoid(b)", "a * F.tanh(b)"),
        ("along * a - across * b", "along * a + across * b"),
    ],
)
def test_the_test_file_of_the_page_finds_wrong_rules(page_session, right, wrong):
    ops = ops_of_the_page()
    assert right in ops
    assert page_session(ops.replace(right, wrong)).parseoutcomes().get("failed")


def op(forward, twin=None, rule=None, **rules):
    made = tv.primitive(twin=twin)(forward)
    if rule:
        made.gradient(rule)
    made.gradients(**rules)
    return made


def overwriting(F, gy):
    gy *= 3
    return gy


def overwriting_forward(xp, x):
    x *= 2
    return x


def mul(xp, a, b):
    return a * b


def matmul(xp, a, b):
    return xp.matmul(a, b)


def times_a_residue(F, gy, residue):
    return (2 * gy * residue,)


X = np.array([0.5, -1.5])
SQUARE = np.arange(4.0).reshape(2, 2) + 1
MISTAKES = {
    "a wrong sign": (op(lambda xp, x: xp.cos(x), x=lambda F, gy, x: gy * F.sin(x)), [X]),
    "a missing transpose (of a square matrix)": (
        op(matmul, a=lambda F, gy, b: F.matmul(gy, b), b=lambda F, gy, a: F.matmul(F.swapaxes(a, 0, 1), gy)),
        [SQUARE, SQUARE + 1],
    ),
    "a forgotten factor": (op(lambda xp, x: x * x, x=lambda F, gy, x: gy * x), [X]),
    "gradients of a joint rule in the wrong order": (op(mul, rule=lambda F, gy, a, b: (gy * a, gy * b)), [X, X + 1]),
    "a rule that is not linear in `gy`": (op(lambda xp, x: 3 * x, x=lambda F, gy: 3 * gy * F.abs(gy)), [X]),
    "a test on a kink, which would pass by luck": (
        op(lambda xp, x: xp.maximum(x, 0), x=lambda F, gy, x: F.where(x > 0, gy, 0)),
        [np.array([0.0, 1.0])],
    ),
    "`np` in a rule in place of `F`": (op(lambda xp, x: xp.exp(x), x=lambda F, gy, x: gy * np.exp(x)), [X]),
    "a rule from a `residue`, and no twin": (op(lambda xp, x: (x * x, x), rule=times_a_residue), [X]),
    "a twin that is another function": (
        op(lambda xp, x: (x * x, x), twin=lambda F, x: x * F.abs(x), rule=times_a_residue),
        [X],
    ),
    "a rule that writes to `gy` in place": (op(lambda xp, x: 3 * x, x=overwriting), [X]),
    "a forward that writes to its argument": (op(overwriting_forward, x=lambda F, gy: 2 * gy), [X]),
    "a forward that makes float64 of float32": (
        op(lambda xp, x: x * xp.ones(2), x=lambda F, gy: gy),
        [X],
    ),
}
TABLE = PAGE.read_text("utf-8").partition("## Common mistakes")[2]
ROWS = dict(re.findall(r"^\| (.+?) \| (.*) \|$", TABLE, re.MULTILINE)[1:])  # all but the heading


def test_the_table_of_mistakes_is_complete():
    assert list(ROWS) == list(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_table_of_mistakes_says_which_check_shows_them(mistake, no_gpu):
    f, arrays = MISTAKES[mistake]
    outcomes = []
    for check in (tv.gradcheck, tv.gradgradcheck):
        try:
            check(f, [tv.tensor(a, requires_grad=True) for a in arrays])
            outcomes.append("passes")
        except tv.GradcheckError:
            outcomes.append("fails")
        except Exception:
            outcomes.append("raises")
    sample = audits.Sample("op", mistake, lambda F, *xs: f(*xs), tuple(lambda rng, a=a: a.copy() for a in arrays))
    rows = audits.run([sample]).rows
    outcomes.append("passes" if {row.verdict for row in rows} <= {"pass", "not checked"} else "fails")
    assert " | ".join(outcomes) == ROWS[mistake]
