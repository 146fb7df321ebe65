"""The audit passes, looks at everything, and each of its methods sees the wrong gradients that it is there for."""

import inspect
import json
import math
import os
import re

import numpy as np
import pytest

import tinyvit as tv
from tinyvit import cli, layers
from tinyvit.engine import kernels
from tinyvit.engine.ops import elementwise, indexing, linalg, nn, reductions, shapes
from tinyvit.study import audit
from tinyvit.study.audit import Sample, normal
from tinyvit.study.audit.layers import LAYERS
from tinyvit.study.audit.report import FAIL, KINK, PASS, SKIP, Report, Row
from tinyvit.study.audit.samples import KINKS, NOT_DIFFERENTIABLE, SAMPLES, STEPS, WITHOUT

FAMILIES = (elementwise, indexing, linalg, nn, reductions, shapes)
FUSED = {p.name for family in FAMILIES for p in vars(family).values() if isinstance(p, tv.Primitive) and p.twin}

LEFT_TO_THE_ARRAY_CODE = {  # by the kernels of the CPU: single numbers and batches that broadcast
    "() approximate=none",
    "(2,2,2) (3,2) (1,3,2)",
    "(2,1,2) (2,2,2) (2,2,3)",
}

# -------------------------------------------------------------------------------------------- everything, by everything


LARGE = [layer for layer in LAYERS if layer.op == "ViT" and layer.case != "(2,1,4,4)"]  # half of the audit's time


def audited(device, samples):
    return audit.run(samples, device=device, workers=os.cpu_count() or 1)


@pytest.fixture(scope="session")
def report(device):
    return audited(device, [sample for sample in audit.registry() if sample not in LARGE])


@pytest.mark.parametrize("name", audit.names())
def test_no_gradient_of_an_op_or_layer_is_wrong(report, name):
    rows = audit.by_op(report.rows)[name]
    assert [row.sentence() for row in rows if row.verdict == FAIL] == []
    assert any(row.verdict == PASS for row in rows) or name in NOT_DIFFERENTIABLE


@pytest.mark.slow
def test_no_gradient_of_a_larger_model_is_wrong(device):
    report = audited(device, LARGE)
    assert [row.sentence() for row in report.rows if row.verdict == FAIL] == []
    methods = methods_of(report)
    for sample in LARGE:
        assert_looked_at(sample, methods[str(sample)])


def methods_of(report):
    """By what each sample was looked at: {sample: [method, …]}."""
    methods = {}
    for row in report.rows:
        name = "slopes" if row.method in ("jacobian", "projections") else row.method
        methods.setdefault(f"{row.op}: {row.case}", []).append(name)
    return methods


def assert_looked_at(sample, found):
    of_fused = {name for name in audit.METHODS if name.startswith(("twin", "kernels"))}
    assert len(of_fused) == 5
    always = {name for name in audit.METHODS if name not in of_fused and name != "choice"}
    assert len(found) == len(set(found))
    assert set(found) >= always - {"float32", "float16"}
    assert {"float32", "float16"} <= set(found) or sample.op == "astype"
    if sample.op in FUSED:
        assert of_fused <= set(found)
    if isinstance(sample, Sample) and sample.op not in FUSED:
        assert not of_fused & set(found)


def test_every_sample_was_looked_at_by_every_method_that_is_meant_for_it(report):
    """A method that silently skipped a sample would pass everything."""
    methods = methods_of(report)
    for sample in [*SAMPLES, *LAYERS]:
        if sample not in LARGE:
            assert_looked_at(sample, methods[str(sample)])
    for sample in KINKS:
        assert methods[str(sample)] == ["slopes", "choice"]
    assert {
        "linear", "gelu", "layer_norm", "add_layer_norm", "scaled_dot_product_attention", "multi_head_attention",
        "cross_entropy",
    } == FUSED  # fmt: skip


def nothing_comes_of(sample):
    """No result has an element, and so no gradient has one that is not 0."""
    return all(y.size == 0 for y in sample(*sample.tensors()))


def has_no_slope(sample):
    """Nothing goes in, or nothing comes out."""
    inputs = sample.tensors()
    return not sum(x.size for x in inputs if x.requires_grad) * sum(y.size for y in sample(*inputs))


def test_what_is_not_checked_says_why_and_is_expected(report):
    skipped = [row for row in report.rows if row.verdict == SKIP]
    empty = {row for row in skipped if row.note.startswith("it runs, but is empty")}
    assert {(row.op, row.case) for row in empty} == {(s.op, s.case) for s in SAMPLES if has_no_slope(s)}
    others = {row.method for row in skipped if row not in empty}
    assert others <= {"complex step", "backends", "kernels float64", "kernels float32"}
    assert all(row.note for row in skipped)
    analytic = {row.op for row in report.rows if row.method == "complex step" and row.verdict == PASS}
    assert analytic >= {"exp", "softmax", "layer_norm", "matmul", "linear", "scaled_dot_product_attention", "relu"}
    if not tv.gpu_available():
        assert {row.note for row in skipped if row.method == "backends"} == {"no CuPy or no GPU here"}


def test_every_kernel_is_looked_at_and_what_none_computes_says_why(report, device):
    rows = [row for row in report.rows if row.method.startswith("kernels")]
    notes = {row.note for row in rows if row.verdict == SKIP}
    if device == "cpu" and not kernels.in_use():
        why = "the kernels are switched off" if kernels.available() else "Numba is not installed, which the CPU's"
        assert all(row.verdict == SKIP for row in rows)
        assert all(note.startswith(why) for note in notes)
        return
    assert notes <= {"no kernel suits it", "it runs, but is empty: there are no numbers to compare"}
    there = {name for name in FUSED if kernels.find(name, device)}
    for dtype in ("float64", "float32"):
        looked_at = {row.op for row in rows if row.dtype == dtype and row.verdict == PASS}
        assert looked_at & FUSED == there
    if there:
        assert looked_at - FUSED == {  # the layers
            "Linear", "LayerNorm", "PatchEmbedding", "MultiHeadSelfAttention", "FeedForward", "EncoderLayer",
            "PreLogits", "ClassificationHead", "ViT",
        }  # fmt: skip
    whole = {(row.op, row.case) for row in rows if row.verdict == SKIP and row.op in there}
    for op, case in whole:  # what a kernel leaves to the array code: named, so that no more falls through unseen
        empty = next(has_no_slope(s) for s in SAMPLES if (s.op, s.case) == (op, case))
        assert empty or (op == "gelu" and "approximate=none" not in case) or case in LEFT_TO_THE_ARRAY_CODE


def test_kinks_are_recognised_where_they_are_and_nowhere_else(report):
    kinks = {f"{row.op}: {row.case}" for row in report.rows if row.verdict == KINK}
    assert kinks == {str(sample) for sample in [*KINKS, *STEPS]}


def test_rows_hold_what_was_measured(report):
    for row in report.rows:
        if row.verdict == PASS and row.elements:
            assert row.absolute <= row.tolerance or row.absolute == 0, row
            assert row.margin >= 1
            assert row.absolute == pytest.approx(abs(row.given - row.measured)) or math.isinf(row.given)
            assert row.where
            assert row.dtype in ("float64", "float32", "float16")
    matmul = next(row for row in report.rows if row.op == "matmul" and row.case == "(2,3) (3,2)")
    assert (matmul.shapes, matmul.method, matmul.elements) == (((2, 3), (3, 2)), "jacobian", 4 * 6 + 4 * 6)


# ------------------------------------------------------------------------------------------------------- the registry


def test_every_public_op_is_in_the_registry():
    sampled = {sample.op for sample in SAMPLES}
    assert not sampled & NOT_DIFFERENTIABLE
    assert sampled | NOT_DIFFERENTIABLE == set(tv.ops.__all__)


def test_every_layer_is_in_the_registry():
    found = {c.__name__ for c in vars(layers).values() if inspect.isclass(c) and issubclass(c, layers.Module)}
    assert {sample.op for sample in LAYERS} == found - {"Module"} | {"ViT"}


def test_every_op_has_empty_and_single_number_samples_or_a_reason():
    has = {op: set() for op in tv.ops.__all__}
    for sample in SAMPLES:
        for array in sample.arrays():
            if array.dtype.kind == "f":
                has[sample.op] |= ({"empty"} if array.size == 0 else set()) | ({"0-d"} if array.ndim == 0 else set())
    missing = {(op, trait) for op in has for trait in ("empty", "0-d") if trait not in has[op]}
    assert missing - {(op, t) for op in NOT_DIFFERENTIABLE for t in ("empty", "0-d")} == set(WITHOUT)


def test_samples_are_named_once_and_reproduce():
    everything = audit.registry()
    assert len({str(sample) for sample in everything}) == len(everything)
    for sample in everything:
        for first, second in zip(sample.prepare()[1], sample.prepare()[1], strict=True):
            np.testing.assert_array_equal(first.numpy(), second.numpy())


def test_some_ops_are_picked_by_name_and_unknown_names_are_an_error():
    assert {sample.op for sample in audit.registry(["softmax", "LayerNorm"])} == {"softmax", "LayerNorm"}
    with pytest.raises(ValueError, match="'sofmax' is neither an op nor a layer"):
        audit.registry(["sofmax"])


# --------------------------------------------------------------------------- each method sees what it is there for


def verdicts(op, *makers, methods=audit.METHODS, f=None):
    """{method: row} of an op of one's own."""
    sample = Sample("mine", "", f or (lambda F, *xs: op(*xs)), makers or (normal(2, 3),))
    return {row.method: row for row in audit.examine(sample, methods=methods)}


def failing(*arguments, **named):
    return {method for method, row in verdicts(*arguments, **named).items() if row.verdict == FAIL}


def cube(rule):
    op = tv.primitive(lambda xp, x: x * x * x)
    op.gradients(x=rule)
    return op


def test_a_right_op_of_ones_own_passes_every_method():
    rows = verdicts(cube(lambda F, gy, x: gy * (3 * x * x)))
    assert {row.verdict for method, row in rows.items() if method != "backends"} == {PASS}


def test_an_error_in_the_tenth_digit_is_seen_by_the_complex_step_alone():
    op = cube(lambda F, gy, x: gy * (3.0000000003 * x * x))
    assert failing(op, methods=["slopes", "complex step", "layout"]) == {"complex step"}


def test_writing_to_gy_or_to_a_saved_value_is_seen():
    def on_gy(F, gy, x):
        gy *= 3
        return gy * x * x

    def on_x(F, gy, x):
        x *= 1.5
        return gy * (2 * x) * (x / 1.125)

    # a Tensor's *= makes a new one, so that only ordinary sweeps go wrong
    assert "aliased" in failing(cube(on_gy))
    assert "aliased" in failing(cube(on_x))


def test_a_rule_that_reads_memory_instead_of_elements_is_seen_by_the_layout():
    def flat(F, gy, x):
        if F is tv.ops:
            return gy * (3 * x * x)
        memory = np.lib.stride_tricks.as_strided(gy, gy.shape, np.empty(gy.shape, gy.dtype).strides)
        return memory * (3 * x * x)

    assert failing(cube(flat), methods=["slopes", "layout", "float32"]) == {"layout"}


def test_chance_in_a_rule_is_seen():
    rng = np.random.default_rng()
    assert "determinism" in failing(cube(lambda F, gy, x: gy * (3 * x * x) * (1 + 1e-12 * rng.standard_normal())))


def test_a_rule_that_is_not_linear_in_gy_is_seen():
    """With unit cotangents |gy| is gy, and with positive ones too."""
    row = verdicts(cube(lambda F, gy, x: F.abs(gy) * (3 * x * x)), methods=["slopes"])["linearity"]
    assert row.verdict == FAIL


def test_a_value_used_twice_gets_both_gradients():
    product = tv.primitive(lambda xp, a, b: a * b)
    seen = []

    @product.gradient
    def rule(F, gy, a, b):
        seen.append(a is b)
        return (gy * b, F.zeros_like(gy)) if a is b else (gy * b, gy * a)  # "the same thing needs one gradient"

    assert failing(product, normal(3), normal(3), methods=["slopes", "layout", "repeated"]) == {"repeated"}
    assert True in seen


def test_a_rule_in_double_precision_is_seen_in_narrow_dtypes():
    wide = tv.primitive(lambda xp, x: x.astype(np.float64) * x * x)
    wide.gradients(x=lambda F, gy, x: gy * (3 * x * x))
    assert failing(wide) == {"float32", "float16"}


def test_a_fused_op_that_is_not_its_twin_is_seen_in_value_and_gradient():
    def twin(F, x):
        return x * x * x

    def made(value, slope):
        op = tv.primitive(twin=twin)(lambda xp, x: value * x * x * x)
        op.gradient(lambda F, gy, x: (gy * slope * x * x,))
        return op

    for value, slope, wrong in [(1.0, 3.0, set()), (1.001, 3.0, {"value"}), (1.0, 3.01, {"gradient"})]:
        row = verdicts(made(value, slope), methods=["twin float64"])["twin float64"]
        assert {word for word in ("value", "gradient") if word in row.where and row.verdict == FAIL} == wrong


def test_a_fused_op_whose_twin_is_wrong_is_seen_in_second_order():
    op = tv.primitive(twin=lambda F, x: x * x * x * 1.001)(lambda xp, x: x * x * x)
    op.gradient(lambda F, gy, x: (gy * 3 * x * x,))
    assert failing(op, methods=["slopes", "second order", "recorded sweep"]) == {"second order", "recorded sweep"}


def test_a_kernel_that_computes_something_else_is_seen_in_value_and_gradient(monkeypatch):
    @tv.primitive(fused=True)
    def twice_and_more(F, x):
        return x * 2

    twice_and_more.gradients(x=lambda F, gy: 2 * gy)
    twice_and_more.has_kernels = True

    def look(value, slope):
        kernel = kernels.Kernel(lambda x: (x * value, ()), lambda gy, needed, saved: (gy * slope,))
        monkeypatch.setitem(kernels._found, "cpu", {"twice_and_more": kernel})
        return verdicts(twice_and_more)

    monkeypatch.setattr(kernels, "_wanted", True)
    monkeypatch.setattr(kernels, "available", lambda: True)
    for value, slope, wrong in [(2.0, 2.0, set()), (2.0001, 2.0, {"value"}), (2.0, 2.0001, {"gradient"})]:
        rows = look(value, slope)
        for name in ("kernels float64", "kernels float32"):
            found = {word for word in ("value", "gradient") if word in rows[name].where}
            assert (found if rows[name].verdict == FAIL else set()) == wrong
        assert (rows["recorded sweep"].verdict == FAIL) == (wrong == {"gradient"})
    for name, value, why in [
        ("_wanted", False, "the kernels are switched off"),
        ("available", lambda: False, "Numba is not installed, which the CPU's kernels need"),
    ]:
        monkeypatch.setattr(kernels, name, value)
        monkeypatch.setitem(kernels._found, "cpu", {})
        rows = verdicts(twice_and_more)
        assert {(row.verdict, row.note) for name, row in rows.items() if name.startswith("kernels")} == {(SKIP, why)}


def test_a_rule_that_raises_is_a_row_that_fails():
    op = cube(lambda F, gy, x: gy @ x)
    row = verdicts(op, methods=["slopes"])["slopes"]
    assert row.verdict == FAIL
    assert row.note.startswith("ValueError: ")
    broken = Sample("mine", "", lambda F, x: x, (lambda rng: 1 / 0,))
    assert audit.examine(broken, methods=["slopes"])[0].note == "ZeroDivisionError: division by zero"


def test_a_wrong_choice_at_a_kink_is_a_failure_whether_it_lies_between_the_slopes_or_not(monkeypatch):
    [sample] = [s for s in KINKS if s.op == "abs"]
    assert [row.verdict for row in audit.examine(sample)] == [KINK, PASS]
    for chosen, found in [(-1.5, [FAIL, FAIL]), (0.5, [KINK, FAIL])]:
        rule = lambda F, gy, x, chosen=chosen: gy * F.where(x == 0, chosen, F.sign(x))
        monkeypatch.setitem(tv.ops.abs.rules, "x", (rule, ("x",)))
        rows = audit.examine(sample)
        assert [row.verdict for row in rows] == found
        assert (rows[1].given, rows[1].measured) == (chosen, 0)


def test_a_step_that_carries_a_gradient_is_a_failure(monkeypatch):
    [sample] = [s for s in STEPS if s.op == "greater"]
    monkeypatch.setattr(tv.ops, "greater", lambda a, b: a * 1.0)
    [row] = audit.examine(sample)
    assert (row.verdict, row.note) == (FAIL, "greater: (2,3) (3,) carries a gradient")


# ------------------------------------------------------------------------------------------------ rows and their forms

ROWS = (
    Row("good", "(2,)", ((2,),), "float64", "jacobian", PASS, 4, 1e-12, 1e-12, "element (0,)", 1.0, 1.0, 1e-7, 1e5),
    Row("exact", "(2,)", ((2,),), "float64", "layout", PASS, 4, where="element (1,)", tolerance=1e-12),
    Row("bad<op>", "()", ((),), "float32", "float32", FAIL, 1, 1.0, math.inf, "element ()", math.nan, 0.0, 1e-7, 1e-7),
    Row("relu", "at 0", ((1,),), "float64", "jacobian", KINK, 1, note="a kink, 0 on one side and 1 on the other"),
    Row("good", "(2,)", ((2,),), "float64", "backends", SKIP, note="no CuPy or no GPU here"),
)
REPORT = Report(ROWS, 1.25)


def test_the_text_shows_the_worst_row_of_each_op_and_every_failure():
    text = REPORT.to_text()
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["good", "exact", "bad<op>", "relu"]
    assert "1e+05×" in lines[2]
    assert "exact" in lines[3].split()[8]
    assert lines[-2].startswith("bad<op> (), float32 in float32: fail; worst of 1 at element (): given nan, expected")
    assert lines[-1] == (
        "4 ops and layers, 10 numbers compared in 1 s: 2 pass, 1 fail, 1 not differentiable here, 1 not checked"
    )
    assert len(REPORT.to_text(every_row=True).splitlines()) == len(lines) + 1
    assert max(map(len, REPORT.to_text(width=60).splitlines()[:6])) == 60


def test_the_json_is_strict_and_says_null_where_there_is_no_number():
    answer = json.loads(REPORT.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert answer["summary"] == {"pass": 2, "fail": 1, "not differentiable here": 1, "not checked": 1}
    assert answer["seconds"] == 1.25
    bad = answer["rows"][2]
    assert (bad["given"], bad["relative"], bad["measured"], bad["verdict"]) == (None, None, 0.0, "fail")
    assert set(bad) >= {"op", "shapes", "dtype", "method", "elements", "where", "tolerance", "margin"}
    assert answer["rows"][0]["shapes"] == [[2]]


def test_the_html_page_needs_nothing_else_and_escapes_what_it_shows():
    page = REPORT.to_html()
    assert not re.search(r"(src|href)=|https?:|@import|url\(", page)
    assert page.count("<tr") == len(ROWS) + 1
    assert "bad&lt;op&gt;" in page
    assert page.index("bad&lt;op&gt;") < page.index("<td>good")  # failures first
    assert "{{" not in page


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def command(capsys):
    def run(*arguments):
        try:
            code = cli.main(["audit", *map(str, arguments)])
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def test_the_command_prints_a_table_and_writes_a_page(command, tmp_path):
    code, out, err = command("transpose", "Dropout", "--html", tmp_path / "audit.html")
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[2:4]] == [["transpose", "pass"], ["Dropout", "pass"]]
    assert ", 0 fail, " in out.splitlines()[-1]
    assert "<td>transpose" in (tmp_path / "audit.html").read_text(encoding="utf-8")
    code, out, _ = command("transpose", "--all", "--workers", "1")
    assert code == 0
    assert len(out.splitlines()) > 50


def test_the_command_exits_with_1_when_a_rule_is_wrong_and_names_it(command, monkeypatch):
    wrong_rule = lambda F, gy, axes: F.reshape(gy, gy.shape[::-1])
    monkeypatch.setattr(tv.ops.transpose, "rules", {"x": (wrong_rule, ("axes",))})
    code, out, _ = command("transpose", "--workers", "1", "--json")
    assert code == 1
    rows = json.loads(out)["rows"]
    wrong = [row for row in rows if row["verdict"] == "fail"]
    assert wrong
    assert {row["op"] for row in rows} == {"transpose"}
    named = next(row for row in wrong if row["method"] == "jacobian")
    assert re.fullmatch(r"input 0, element \(.*\), for element \(.*\) of the result", named["where"])
    assert sorted([named["given"], named["measured"]]) == pytest.approx([0, 1])
    assert command("transpose", "--workers", "1")[1].count("transpose") > len(wrong)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sofmax"], 2, "'sofmax' is neither an op nor a layer: did you mean softmax"),
        (["exp", "--workers", "0"], 2, "--workers is 0; it must be at least 1"),
        (["exp", "--html", "nowhere/audit.html"], 2, "--html nowhere/audit.html: there is no folder nowhere"),
    ],
)
def test_wrong_usage_of_the_command_is_one_sentence(command, arguments, code, message):
    found, out, err = command(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
