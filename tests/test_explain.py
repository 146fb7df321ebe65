"""The tape as it is shown: what is noted, what the sweep does, what is held meanwhile, and the page that says so."""

import base64
import functools
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import weakref
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tinyvit as tv
from tinyvit.data import preprocess
from tinyvit.engine import Primitive, kernels, ops
from tinyvit.layers import FeedForward, LayerNorm, Linear, Module
from tinyvit.study import audit
from tinyvit.study.audit.report import FAIL
from tinyvit.study.audit.samples import SAMPLES
from tinyvit.study.equations import EQUATIONS
from tinyvit.study.explain import document, recording
from tinyvit.study.explain.attention import rollout
from tinyvit.study.explain.document import FILES, as_json, assembled, facts
from tinyvit.study.explain.sources import fingerprint, mathml, own_primitives, shipped_verdicts
from tinyvit.study.explain.values import described, flags, png, rows_as_bytes
from tinyvit.study.pictures import attention_maps
from tinyvit.training import Config, DataConfig, TrainedModel


@pytest.fixture(autouse=True)
def hooks():
    """Fail a test that leaves anything of a recording behind; each starts as if none had ever been."""
    before = Primitive.apply, Module.__call__, tv.Tensor.backward
    recording._last = None
    yield
    assert (Primitive.apply, Module.__call__, tv.Tensor.backward) == before
    assert not recording._open.locked()


def leaf(*values, dtype=np.float64):
    return tv.tensor(np.array(values, dtype), requires_grad=True)


def small_vit(seed=0, **changes):
    sizes = {"patch_size": 4, "num_classes": 3, "dim": 16, "depth": 2, "num_heads": 2, "channels": 1}
    config = tv.ViTConfig(image_size=(8, 12), **{**sizes, **changes})
    rng = np.random.default_rng(seed)
    model = tv.ViT(config, rng)
    model.load_state_dict({k: v + 0.5 * rng.standard_normal(v.shape) for k, v in model.state_dict().items()})
    return model


def some_images(model, n=3):
    c = model.config
    return np.random.default_rng(1).integers(0, 256, (n, c.channels, c.height, c.width)).astype(np.uint8)


def vit_loss(model, gradient_of_pixels=True):
    """The watched loss of a small ViT, its images and its labels."""
    pixels = some_images(model)
    images = preprocess(pixels, (0.4,) * model.config.channels, (0.3,) * model.config.channels)
    images = tv.tensor(images, requires_grad=gradient_of_pixels)
    labels = np.array([0, 2, 1])
    with tv.study.watch():
        loss = ops.cross_entropy(model(images), labels)
    return loss, images, pixels, labels


def numbers(value):
    return np.array(value["numbers"], dtype=np.float64)


def check(data):
    """What every page holds to, whatever it shows."""
    nodes, n = data["nodes"], len(data["nodes"])
    assert [node["id"] for node in nodes] == list(range(n))
    assert json.loads(as_json(data).replace("<\\/", "</")) == data  # finite, and nothing but JSON
    for node in nodes:
        assert all(parent["id"] < node["id"] for parent in node["parents"])
        assert 0 <= node["scope"] < len(data["scopes"])
        assert node["line"] is None or 0 <= node["line"] < len(data["lines"])
        assert (node["op"] is None) == (node["kind"] == "leaf")
        assert node["op"] is None or node["op"] in data["ops"]
        assert node["saved_bytes"] >= 0
        assert all(kept["of"] is None or 0 <= kept["of"] < n for kept in node["saved"])
    for i, scope in enumerate(data["scopes"]):
        assert (scope["parent"] is None) if i == 0 else (0 <= scope["parent"] < i)
    order = [step["node"] for step in data["sweep"]]
    assert order == sorted(order, reverse=True)
    for step in data["sweep"]:
        assert {g["to"] for g in step["gives"]} <= {p["id"] for p in nodes[step["node"]]["parents"]}
    totals, forward = data["totals"], [m["bytes"] for m in data["memory"] if m["phase"] == "forward"]
    assert sum(node["saved_bytes"] for node in nodes) == totals["saved_bytes"] == forward[-1]
    assert sum(step["freed"] for step in data["sweep"]) == totals["saved_bytes"]
    assert data["memory"][-1] == {"phase": "backward", "node": order[-1], "bytes": 0}  # nothing is left
    assert max(m["bytes"] for m in data["memory"]) == totals["peak_bytes"]
    assert (totals["nodes"], totals["ops"] + totals["leaves"]) == (n, sum(node["kind"] != "part" for node in nodes))


# ------------------------------------------------------------------------------------------------------------- watching


def test_a_note_has_the_line_the_value_the_constants_and_the_time():
    x = leaf(1.0, 2.0)
    with tv.study.watch() as noted:
        y = ops.clip(x * 3.0, 0.0, 4.0)  # this line
    note = noted.notes[y.node.number]
    code = Path(note.line.path).read_text().splitlines()[note.line.number - 1]
    assert code.endswith("# this line")
    assert note.line.function == "test_a_note_has_the_line_the_value_the_constants_and_the_time"
    assert numbers(note.value).tolist() == [3.0, 4.0]
    assert 0 < note.seconds < 1
    assert {c["argument"]: c["value"]["text"] for c in note.constants} == {"min": "min=0.0", "max": "max=4.0"}
    assert noted.notes[x.node.number].name == "x"


def test_a_layer_is_found_by_the_names_of_the_attributes_that_lead_to_it():
    loss, *_ = vit_loss(model := small_vit())
    data = facts(loss)
    check(data)
    scopes = {s["path"]: (s["type"], s["label"]) for s in data["scopes"]}
    assert scopes[""] == ("ViT", "model")
    assert scopes["blocks.1.attn"] == ("MultiHeadSelfAttention", "attn")
    assert scopes["blocks.1.attn.qkv"] == ("Linear", "qkv")
    where = {data["scopes"][n["scope"]]["path"] for n in data["nodes"] if n["op"] == "gelu"}
    assert where == {"blocks.0.mlp", "blocks.1.mlp"}
    names = {n["name"]: data["scopes"][n["scope"]]["path"] for n in data["nodes"] if n["kind"] == "leaf"}
    assert names.keys() == {*dict(model.named_parameters()), "images"}
    assert names["blocks.1.attn.qkv.weight"] == "blocks.1.attn.qkv"
    assert (names["pos_embed"], names["cls_token"]) == ("pos_embed", "")
    lines = {n["op"]: data["lines"][n["line"]] for n in data["nodes"] if n["line"] is not None}
    assert lines["multi_head_attention"]["file"] == "tinyvit/layers/encoder.py"
    assert lines["multi_head_attention"]["function"] == "MultiHeadSelfAttention.forward"
    assert "ops.multi_head_attention" in lines["multi_head_attention"]["code"]


def test_several_models_each_have_a_scope_of_their_own():
    first, second = Linear(2, 3), FeedForward(3, 4)
    with tv.study.watch():
        loss = second(first(leaf(1.0, 2.0, dtype=np.float32))).sum()
    data = facts(loss)
    check(data)
    paths = [s["path"] for s in data["scopes"]]
    assert data["scopes"][0] == {"path": "", "type": "", "label": "computation", "parent": None}
    assert {"first", "second", "second.fc1", "second.fc2"} <= set(paths)
    assert data["scopes"][paths.index("second.fc1")]["parent"] == paths.index("second")


def test_a_layer_that_nobody_can_find_is_in_the_scope_of_its_caller():
    class Hidden(Module):
        def __init__(self):
            self.inner = Linear(2, 2)
            self.outer = lambda x: LayerNorm(2)(x)

        def forward(self, x):
            return self.outer(self.inner(x))

    with tv.study.watch():
        loss = Hidden()(leaf(1.0, 2.0, dtype=np.float32)).sum()
    assert [s["path"] for s in facts(loss)["scopes"]] == ["", "inner", "LayerNorm"]


def test_layers_that_a_method_calls_one_by_one_are_told_apart():
    model = small_vit()
    with tv.study.watch():
        loss = model.features(preprocess(some_images(model), (0.4,), (0.3,))).mean()
    data = facts(loss)
    check(data)
    paths = [s["path"] for s in data["scopes"]]
    assert {"layer", "layer.attn", "layer 2", "layer 2.attn"} <= set(paths)
    assert len(set(paths)) == len(paths)


def test_a_call_that_makes_no_sense_is_told_by_the_model_itself():
    model = small_vit()
    for arguments in ((), (None,), (np.zeros((1, 2, 8, 12), np.float32),), (np.zeros((1, 1, 3, 3), np.float32),)):
        with pytest.raises(Exception) as plain:  # noqa: PT011 -- whichever it is
            model(*arguments)
        with tv.study.watch(), pytest.raises(type(plain.value)) as watched:
            model(*arguments)
        assert str(watched.value) == str(plain.value)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3, "attention_dropout": 0.2}, {"checkpoint": True}], ids=str)
def test_watching_and_explaining_change_no_bit(changes):
    found = []
    for watched in (False, True):
        tv.seed(5)
        model = small_vit(**changes)
        images = preprocess(some_images(model), (0.4,), (0.3,))
        if watched:
            with tv.study.watch():
                loss = ops.cross_entropy(model(images), np.array([0, 1, 2]))
            check(facts(loss))
            assert all(p.grad is None for p in model.parameters())
        else:
            loss = ops.cross_entropy(model(images), np.array([0, 1, 2]))
        loss.backward()
        found.append([loss.numpy(), *(p.grad.numpy() for p in model.parameters())])
    for plain, seen in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, seen)


def test_hooks_are_gone_after_an_error():
    with pytest.raises(ZeroDivisionError), tv.study.watch():
        1 / 0  # noqa: B018
    assert Primitive.apply.__name__ == "apply"
    with pytest.raises(ValueError, match="does not fit"), tv.study.watch():
        Linear(3, 2)(leaf(1.0))
    with tv.study.watch():  # and the next one opens
        pass


def test_a_recording_cannot_be_opened_twice():
    with tv.study.watch():
        with pytest.raises(RuntimeError, match="a recording is open already"), tv.study.watch():
            pass
        assert Primitive.apply.__name__ == "watched_apply"
        errors = []

        def open_another():
            try:
                with tv.study.watch():
                    pass
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=open_another)
        thread.start()
        thread.join()
        assert len(errors) == 1


def test_other_threads_are_left_alone():
    x, results = leaf(1.0, 2.0), []
    with tv.study.watch() as noted:
        thread = threading.Thread(target=lambda: results.append(Linear(2, 1)(x * 2.0)))
        thread.start()
        thread.join()
    assert results[0].shape == (1,)
    assert (noted.notes, noted.roots) == ({}, [])


def test_a_recording_keeps_nothing_alive():
    model = Linear(3, 200)
    with tv.study.watch() as noted:
        y = model(tv.tensor(np.ones((200, 3), np.float32), requires_grad=True))
    alive = [weakref.ref(model), weakref.ref(y), weakref.ref(y.data)]
    assert len(noted.notes) == 4
    del model, y
    assert [ref() for ref in alive] == [None] * 3


def test_what_is_off_the_tape_is_not_noted():
    with tv.study.watch() as noted:
        np.testing.assert_array_equal((tv.tensor([1.0]) * 2).numpy(), [2.0])
        with tv.no_grad():
            leaf(1.0) * 2.0
    assert noted.notes == {}


def test_a_leaf_that_was_overwritten_is_noted_anew():
    x = leaf(1.0)
    with tv.study.watch() as noted:
        x * 2.0
        with tv.no_grad():
            x += 1.0
        x * 2.0
    assert numbers(noted.notes[x.node.number].value).tolist() == [2.0]


def test_the_study_room_is_not_loaded_before_it_is_asked_for():
    code = "import sys, tinyvit; assert 'tinyvit.study' not in sys.modules; tinyvit.study.watch; tinyvit.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("AttributeError: module 'tinyvit' has no attribute 'nothing'\n")


# --------------------------------------------------------------------------------------------------- values, gradients


def test_values_and_gradients_are_those_of_numpy_and_of_backward():
    a, b = leaf(2.0, -1.0, 0.5), leaf(0.5, 3.0, -2.0)
    with tv.study.watch():
        h = ops.tanh(a * b + a)
        loss = (h * h).sum()
    data = facts(loss)
    check(data)
    A, B = a.numpy(), b.numpy()
    H = np.tanh(A * B + A)
    inner = 2 * H * (1 - H**2)
    expected = {  # value and gradient
        "a": (A, inner * (B + 1)),
        "b": (B, inner * A),
        "multiply": (A * B, inner),
        "add": (A * B + A, inner),
        "tanh": (H, 2 * H),
        "sum": ((H * H).sum(), 1.0),
    }
    for node in data["nodes"]:
        name = node.get("name") or node["op"]
        if name in expected and node["id"] != 5:
            np.testing.assert_allclose(numbers(node["value"]), expected.pop(name)[0], rtol=1e-14)
    assert not expected
    gradients = {node.get("name") or f"{node['op']} {node['id']}": numbers(node["gradient"]) for node in data["nodes"]}
    loss.backward()
    np.testing.assert_array_equal(gradients["a"], a.grad.numpy())
    np.testing.assert_array_equal(gradients["b"], b.grad.numpy())
    np.testing.assert_allclose(gradients["tanh 4"], 2 * H, rtol=1e-14)
    np.testing.assert_allclose(gradients["add 3"], inner, rtol=1e-14)


def test_every_gradient_of_a_vit_is_that_of_backward():
    loss, images, *_ = vit_loss(model := small_vit())
    shown = {n["name"]: n["gradient"] for n in facts(loss)["nodes"] if n["kind"] == "leaf"}
    loss.backward()
    for name, p in [*model.named_parameters(), ("images", images)]:
        expected = described(p.grad.numpy())
        assert shown[name] == expected, name


def test_where_a_value_is_used_twice_its_second_gradient_is_added():
    x = leaf(1.0, 2.0)
    with tv.study.watch():
        y = ops.sin(x) + x  # a residual
        loss = (y * y).sum()
    data = facts(loss)
    adds = {(data["nodes"][s["node"]]["op"], g["argument"]): g["adds"] for s in data["sweep"] for g in s["gives"]}
    assert adds == {
        ("sum", "x"): False,
        ("multiply", "a"): False,
        ("multiply", "b"): True,
        ("add", "a"): False,
        ("add", "b"): False,  # the first to reach x
        ("sin", "x"): True,
    }


def test_memory_by_hand():
    x = tv.tensor(np.arange(3, dtype=np.float32), requires_grad=True)
    with tv.study.watch():
        y = ops.tanh(x)  # saves y: 12 bytes
        z = y * y  # saves it too, twice: no more memory
        w = z * x  # saves z (12 bytes) and x (a leaf's own)
        loss = w.sum()  # saves a shape
    data = facts(loss)
    check(data)
    saved = [[(k["name"], k["bytes"], k["shared"]) for k in n["saved"] if k["bytes"]] for n in data["nodes"]]
    assert saved == [
        [],
        [("y", 12, False)],
        [("b", 12, True), ("a", 12, True)],
        [("b", 12, True), ("a", 12, False)],
        [],
    ]
    assert [(m["phase"], m["node"], m["bytes"]) for m in data["memory"]] == [
        ("forward", 1, 12),
        ("forward", 2, 12),
        ("forward", 3, 24),
        ("forward", 4, 24),
        ("backward", 4, 24 + 4),  # the seed, which the gradient of w looks at
        ("backward", 3, 12 + 2 * 12),  # z is let go; the gradients of z and x wait
        ("backward", 2, 12 + 2 * 12),  # those of y, in one sum, and x
        ("backward", 1, 12),  # y is let go; x has its sum
        ("backward", 0, 0),
    ]
    assert [s["freed"] for s in data["sweep"]] == [0, 12, 0, 12, 0]
    assert (data["totals"]["saved_bytes"], data["totals"]["peak_bytes"]) == (24, 36)


def test_a_view_keeps_the_whole_array_and_a_view_of_a_leaf_nothing():
    x, w = leaf(*range(8)), leaf(*range(8))
    y = ops.exp(x)
    loss = (y[2:4] * ops.sin(y[4:6]) * w.reshape(2, 4)[0, :2]).sum()
    data = facts(loss)
    check(data)
    holders = {n["op"]: n["saved_bytes"] for n in data["nodes"] if n["saved_bytes"]}
    assert holders == {"exp": 64, "multiply": 16}  # y by its own rule, and two products of two numbers
    assert sum(n["saved_bytes"] for n in data["nodes"]) == 64 + 2 * 16


@pytest.mark.parametrize("on", [True, False], ids=["kernels", "no kernels"])
def test_what_a_kernel_keeps_is_shown_and_why(on):
    with kernels.switched(on):
        loss, *_ = vit_loss(small_vit())
        data = facts(loss)
    check(data)
    [node, _] = [n for n in data["nodes"] if n["op"] == "multi_head_attention"]
    why = {kept["name"]: kept["why"] for kept in node["saved"]}
    assert why["qkv"] == "the rule names it"
    used = on and kernels.available()
    assert ("a" in why) == data["ops"]["multi_head_attention"]["kernel"] == used
    if used:
        assert why["a"] == "the kernel keeps it for its own backward"
    linear = next(n for n in data["nodes"] if n["op"] == "linear")
    reasons = {kept["name"]: kept["why"] for kept in linear["saved"]}
    assert reasons["x"] == "the rule of `weight` names it"


def test_numbers_that_are_none_and_gradients_of_zero_are_flagged():
    x, dead = leaf(0.0, 1.0, 2.0), leaf(1.0, 2.0, 3.0)
    with np.errstate(all="ignore"), tv.study.watch():
        loss = (ops.log(x) * ops.relu(-dead)).sum()
    with np.errstate(all="ignore"):
        data = facts(loss)
    found = {n.get("name") or n["op"]: n["flags"] for n in data["nodes"]}
    assert found["log"] == ["inf in value", "zero gradient"]
    assert found["multiply"] == ["nan in value"]  # -inf · 0
    assert found["sum"] == ["nan in value"]
    assert found["relu"] == ["zero value", "inf in gradient"]
    assert found["dead"] == ["zero gradient"]
    assert found["x"] == ["nan in gradient"]
    assert data["totals"]["loss"] == "nan"
    by_name = {n.get("name") or n["op"]: n for n in data["nodes"]}
    assert by_name["log"]["value"]["numbers"] == ["-inf", 0.0, pytest.approx(np.log(2))]


def test_zero_is_flagged_where_it_is_made():
    x, zero = leaf(1.0, 2.0), leaf(0.0, 0.0)
    with tv.study.watch():
        made = ops.relu(-x)
        loss = (made + 2.0 * zero + x).sum()
    found = {n.get("name") or n["op"]: n["flags"] for n in facts(loss)["nodes"]}
    assert {name for name, words in found.items() if "zero value" in words} == {"relu"}


def test_without_a_recording_what_the_tape_keeps_is_shown():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = ops.tanh(x)
    loss = (y * w * np.array([5.0, 6.0])).sum()
    data = facts(loss)
    check(data)
    assert (data["watched"], data["lines"], data["totals"]["forward_ms"]) == (False, [], None)
    values = {n.get("name") or f"{n['op']} {n['id']}": n["value"] for n in data["nodes"]}
    assert numbers(values["leaf 0"]).tolist() == [1.0, 2.0]
    assert numbers(values["tanh 2"]).tolist() == y.numpy().tolist()  # its rule saved it
    assert values["multiply 4"] is None  # nobody did
    assert numbers(values["sum 5"]) == loss.item()
    constants = {c["argument"]: c["value"] for n in data["nodes"] for c in n["constants"]}
    assert numbers(constants["b"]).tolist() == [5.0, 6.0]


def test_a_recording_of_another_computation_says_nothing_of_this_one():
    loss = leaf(1.0).sum()
    with tv.study.watch():
        leaf(1.0) * 2.0
    assert not facts(loss)["watched"]


def test_an_op_with_several_results_has_parts():
    x = leaf(1.0, 2.0, 3.0, 4.0)
    with tv.study.watch():
        first, second = ops.split(x, 2)
        loss = (first * second + first).sum()
    data = facts(loss)
    check(data)
    whole, one, two = data["nodes"][1:4]
    assert (whole["kind"], one["kind"], two["kind"]) == ("op", "part", "part")
    assert (whole["shape"], one["shape"]) == ([[2], [2]], [2])
    assert [p["id"] for p in (*one["parents"], *two["parents"])] == [1, 1]
    assert numbers(two["value"]).tolist() == [3.0, 4.0]
    assert numbers(one["gradient"]).tolist() == [4.0, 5.0]
    assert one["line"] == whole["line"] == 0
    assert "split[1]" in str(tv.study.tape(loss))


def test_layers_that_are_computed_again_are_one_node_each():
    loss, *_ = vit_loss(small_vit(checkpoint=True))
    data = facts(loss)
    check(data)
    assert data["ops"]["checkpoint"]["rules"][0]["argument"] == "*"
    assert "self.function(x)" in data["ops"]["checkpoint"]["rules"][0]["code"]
    [node] = [n for n in data["nodes"] if n["op"] == "checkpoint"]
    assert node["value"]["size"] == node["gradient"]["size"] == 3 * 7 * 16
    assert data["attention"]["layers"] == 2  # the recomputed one is looked at too


@pytest.mark.slow
def test_every_op_of_the_registry_can_be_shown():
    for sample in {sample.op: sample for sample in SAMPLES}.values():  # one of each
        f, inputs = sample.prepare("cpu")
        with tv.study.watch():
            loss = sum((y.sum() for y in f(*inputs) if y.dtype.kind == "f"), leaf(0.0).sum())
        data = facts(loss)
        check(data)
        loss.backward()
        for x in inputs:
            if x.requires_grad and x.grad is not None:
                shown = [n["gradient"] for n in data["nodes"] if n["kind"] == "leaf"]
                assert described(x.grad.numpy()) in shown, sample.op


def test_a_gradient_of_a_gradient_has_a_tape_of_its_own():
    x = leaf(0.5, 2.0)
    with tv.study.watch():
        [g] = tv.grad((x**3).sum(), [x], create_graph=True)
        loss = (g * g).sum()
    data = facts(loss)
    check(data)
    [dx] = [n["gradient"] for n in data["nodes"] if n.get("name") == "x"]
    np.testing.assert_allclose(numbers(dx), 36 * x.numpy() ** 3, rtol=1e-14)


def test_a_long_chain_is_a_long_table():
    y = leaf(0.5)
    for _ in range(1000):
        y = y * 0.999
    text = str(tv.study.tape(y))
    assert len(text.splitlines()) == 1001 + 4
    assert facts(y.sum())["totals"]["nodes"] == 1002


def test_readable_twins_are_noted_op_by_op():
    x = leaf(0.5, -1.0)
    with tv.unfused(), tv.study.watch():
        loss = ops.gelu(x).sum()
    data = facts(loss)
    check(data)
    assert "gelu" not in data["ops"]
    assert all(n["line"] == 0 and n["value"] for n in data["nodes"] if n["kind"] == "op")


# ----------------------------------------------------------------------------------------------------------- describing


def test_a_large_array_is_described_by_its_range_and_a_histogram():
    x = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    x[0, 0], x[0, 1], x[0, 2], x[1] = np.nan, np.inf, -np.inf, 0
    shown, finite = described(x), x[np.isfinite(x)].astype(np.float64)
    assert "numbers" not in shown
    assert (shown["size"], shown["nonfinite"], shown["nans"]) == (2000, 3, 1)
    for name, expected in (("min", finite.min()), ("mean", finite.mean()), ("std", finite.std())):
        assert shown[name] == pytest.approx(expected, rel=1e-5)
    assert shown["norm"] == pytest.approx(np.linalg.norm(finite), rel=1e-5)
    assert shown["zeros"] == pytest.approx(50 / len(finite), rel=1e-5)
    assert shown["histogram"] == np.histogram(finite, bins=32)[0].tolist()
    assert flags(shown, "value") == ["nan in value", "inf in value"]


@pytest.mark.parametrize(
    ("array", "numbers"),
    [
        (np.float32(0.1), 0.1),
        (np.array([[0.1], [np.nan]], np.float16), [[0.1], ["nan"]]),
        (np.array([1 / 3]), [1 / 3]),
        (np.array([True, False]), [1, 0]),
        (np.array([2**53 + 1]), [2**53 + 1]),
        (np.zeros((0, 3)), []),
        (np.array([np.inf, -np.inf]), ["inf", "-inf"]),
        (np.array([-1e308, 1e308]), [-1e308, 1e308]),
    ],
    ids=repr,
)
def test_a_small_array_is_described_by_its_own_numbers(array, numbers):
    shown = described(np.asarray(array))
    assert shown["numbers"] == numbers
    json.dumps(shown, allow_nan=False)


def test_what_is_no_array_of_real_numbers_is_described_in_words():
    assert described(np.array([1j]))["text"] == "array([0.+1.j])"
    assert described({"a": 1})["text"] == "{'a': 1}"
    assert len(described("x" * 500)["text"]) == 80


def test_pictures_are_what_pillow_reads():
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 3), (5, 7, 4)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        data = base64.b64decode(png(pixels).removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


# ------------------------------------------------------------------------------------------------------------ attention


def decoded(data, scales, width):
    rows = np.frombuffer(base64.b64decode(data), np.uint8).reshape(-1, width)
    return rows / 255 * np.array(scales)[:, None]


def test_attention_is_that_of_the_model():
    loss, images, pixels, labels = vit_loss(model := small_vit())
    found = facts(loss, pixels=pixels, labels=labels.tolist(), classes=("a", "b", "c"))["attention"]
    assert [found[k] for k in ("layers", "heads", "tokens", "prefix", "grid")] == [2, 2, 7, 1, [2, 3]]
    data = DataConfig(mean=(0.4,), std=(0.3,))
    expected = attention_maps(TrainedModel(model, Config(model.config, data), (), Path()), pixels)
    for i, shown in enumerate(found["images"]):
        maps = decoded(shown["maps"], shown["scales"], 7).reshape(2, 2, 7, 7)
        np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=0.02)
        np.testing.assert_allclose(maps.mean(axis=1)[:, 0, 1:].reshape(2, 2, 3), expected[i], atol=3e-3)
        rolled = decoded(shown["rollout"], shown["rollout_scales"], 7)
        np.testing.assert_allclose(rolled, rollout(maps), atol=6e-3)
        assert shown["label"] == "abc"[labels[i]]
        picture = Image.open(io.BytesIO(base64.b64decode(shown["png"].partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(picture), pixels[i, 0])
    p = ops.softmax(model(images)).numpy()
    best = [dict(shown["probabilities"]) for shown in found["images"]]
    np.testing.assert_allclose([[b[c] for c in "abc"] for b in best], p, rtol=1e-4)
    assert [shown["prediction"] for shown in found["images"]] == ["abc"[k] for k in p.argmax(axis=1)]
    loss.backward()
    for shown, gradient in zip(found["images"], images.grad.numpy(), strict=True):
        peak = np.abs(gradient).max()
        assert shown["pixel_gradient_max"] == pytest.approx(peak, rel=1e-5)
        picture = Image.open(io.BytesIO(base64.b64decode(shown["pixel_gradient"].partition(",")[2])))
        np.testing.assert_allclose(np.asarray(picture) / 255, np.abs(gradient).max(axis=0) / peak, atol=1 / 255)


def test_without_a_gradient_at_the_pixels_there_is_none_to_show():
    loss, *_ = vit_loss(small_vit(channels=3), gradient_of_pixels=False)
    [first, *_] = facts(loss)["attention"]["images"]
    assert not first.keys() & {"pixel_gradient", "label"}
    assert first["png"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("changes", [{"depth": 0}, {}], ids=["no layers", "another loss"])
def test_no_attention_is_shown_where_there_is_none(changes):
    loss, *_ = vit_loss(small_vit(**changes))
    if not changes:
        with tv.study.watch():
            loss = leaf(1.0).sum()
    assert facts(loss)["attention"] is None


def test_attention_with_dropout_is_what_the_layers_see():
    """The map itself is shown; which of its weights chance left out is on the tape."""
    loss, *_ = vit_loss(small_vit(attention_dropout=0.5, pool="mean", class_token=False))
    found = facts(loss)["attention"]
    assert (found["prefix"], found["layers"]) == (0, 2)


def test_a_map_may_be_zero():
    assert rows_as_bytes(np.zeros((2, 2))) == ("AAAAAA==", [0.0, 0.0])


def test_rollout_by_hand():
    a, b = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 2, 3))  # two layers of two heads
    one, two = (0.5 * layer.mean(axis=0) + 0.5 * np.eye(3) for layer in (a, b))
    np.testing.assert_allclose(rollout(np.stack([a, b])), two @ one, rtol=1e-14)
    np.testing.assert_allclose(rollout(np.stack([a, b])).sum(axis=-1), 1, rtol=1e-14)


# ------------------------------------------------------------------------------------------------------- code, verdicts


def test_the_code_of_an_op_is_shown_as_it_is_written():
    x = tv.tensor([[1.0, 2.0]], requires_grad=True)
    w, b = tv.tensor([[1.0, 2.0]], requires_grad=True), tv.tensor([1.0], requires_grad=True)
    data = facts(ops.softmax(ops.linear(x, w, b)).sum())
    linear = data["ops"]["linear"]
    assert linear["signature"] == "linear(x, weight, bias=None)"
    assert linear["file"] == "tinyvit/engine/ops/nn.py"
    assert linear["forward"].startswith("@primitive(fused=True)\ndef linear(F, x, weight, bias=None):")
    lines = Path(ops.nn.__file__).read_text().splitlines()
    for rule in linear["rules"]:
        assert rule["code"].splitlines()[-1] == lines[rule["line"] - 1].strip()
        assert rule["code"].startswith(rule["argument"] + "=lambda F, gy")
    [softmax] = data["ops"]["softmax"]["rules"]
    assert softmax["code"].startswith("# ∂L/∂x = y · (∂L/∂y − Σ ∂L/∂y · y)")  # with the comment above it
    assert {e["number"] for e in linear["equations"]} > {"3", "4", "5", "6", "16"}
    by_number = {e["number"]: e for e in linear["equations"]}
    assert by_number["16"]["holds"].startswith("<math")
    assert by_number["16"]["layers"] == ["MultiHeadSelfAttention"]
    assert "holds" not in by_number["4"]
    assert data["ops"]["sum"]["verdict"]["verdict"] == "pass"


@tv.primitive
def own(xp, a, b):
    """a + 2b.

    More of it.
    """
    return a + 2 * b


own.gradients(a=lambda F, gy: gy, b=lambda F, gy: 2 * gy)


def test_an_op_of_ones_own_is_shown_too():
    data = facts(own(leaf(1.0), leaf(2.0)).sum())
    shown = data["ops"]["own"]
    assert [r["code"] for r in shown["rules"]] == ["a=lambda F, gy: gy", "b=lambda F, gy: 2 * gy"]
    assert (shown["doc"], shown["equations"]) == ("a + 2b.", [])
    assert shown["verdict"] == {"verdict": "not checked", "rows": 0}


def test_rules_that_are_no_plain_functions_are_shown_where_there_is_code():
    @tv.primitive
    def scaled(xp, a, b):
        return 3 * a + 4 * b

    class Rule:
        def __call__(self, F, gy):
            return 4 * gy

    scaled.gradients(a=functools.partial(times, 3), b=Rule())
    data = facts(scaled(leaf(1.0), leaf(2.0)).sum())
    check(data)
    assert [r["code"][:22] for r in data["ops"]["scaled"]["rules"]] == ["def times(factor, F, g", ""]


def times(factor, F, gy):
    return factor * gy


def test_two_ops_of_one_name_are_two_ops():
    @tv.primitive
    def tanh(xp, x):
        return 2 * x

    tanh.gradients(x=lambda F, gy: 2 * gy)
    data = facts(ops.tanh(tanh(ops.tanh(leaf(1.0)))).sum())
    check(data)
    assert [n["op"] for n in data["nodes"]] == [None, "tanh", "tanh (2)", "tanh", "sum"]
    assert "2 * x" in data["ops"]["tanh (2)"]["forward"]
    assert data["ops"]["tanh (2)"]["verdict"]["verdict"] == "not checked"


def test_an_op_without_a_file_is_shown_without_code():
    names = {"tv": tv}
    exec("op = tv.primitive(lambda xp, x: x * 2)\nop.gradients(x=lambda F, gy: 2 * gy)", names)
    shown = facts(names["op"](leaf(1.0)).sum())["ops"][names["op"].name]
    assert (shown["forward"], shown["rules"][0]["code"]) == ("", "")


def test_every_formula_ships_as_mathml():
    formulas = {f for e in EQUATIONS for f in (e.tutorial, e.corrected) if f}
    assert mathml().keys() == formulas  # docs/generate.py makes it
    for markup in mathml().values():
        assert re.fullmatch(r'<math display="block">.*</math>', markup)
        assert "\\" not in markup


def test_the_shipped_verdicts_are_of_the_code_as_it_is():
    shipped, primitives = shipped_verdicts(), own_primitives()
    assert shipped.keys() == {op for op in audit.names() if op in primitives}
    stale = [op for op, verdict in shipped.items() if verdict["code"] != fingerprint(primitives[op])]
    assert not stale, "python docs/generate.py --verdicts"
    assert not [op for op, verdict in shipped.items() if verdict["verdict"] == FAIL]


def test_a_verdict_is_not_shown_for_other_code(monkeypatch):
    sin = own_primitives()["sin"]
    monkeypatch.setattr(sin, "rules", {"x": (lambda F, gy, x: gy * F.cos(x) * 2, ("x",))})
    verdict = facts(ops.sin(leaf(1.0)).sum())["ops"]["sin"]["verdict"]
    assert (verdict["verdict"], verdict["rows"]) == ("not checked", 0)
    assert re.fullmatch(r"its code is another than in the audit of \d{4}-\d\d-\d\d", verdict["from"])


def test_ops_can_be_audited_now(monkeypatch):
    from tinyvit.study.explain import sources

    sources._audited.cache_clear()
    sin = own_primitives()["sin"]
    monkeypatch.setattr(sin, "rules", {"x": (lambda F, gy, x: gy * F.cos(x) * 2, ("x",))})
    shown = facts(ops.sin(leaf(1.0)), audit=True)["ops"]["sin"]["verdict"]
    sources._audited.cache_clear()
    assert (shown["verdict"], shown["from"]) == ("fail", "audited now")
    assert shown["worst"]["error"] > shown["worst"]["tolerance"]


# ----------------------------------------------------------------------------------------------------------------- page


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path):
    loss, *_ = vit_loss(small_vit())
    page = tv.study.explain(loss, tmp_path / "new" / "tape.html", title="A <ViT> & its tape")
    text = page.path.read_text(encoding="utf-8")
    assert page.size == page.path.stat().st_size == len(text.encode())
    assert [path.name for path in page.path.parent.iterdir()] == ["tape.html"]
    assert "<title>A &lt;ViT&gt; &amp; its tape</title>" in text
    assert not re.findall(r"\{\{\w+(?:\.\w+)?\}\}", text)
    [data] = re.findall(r'<script type="application/json" id="tape">(.*?)</script>', text, flags=re.DOTALL)
    shown = json.loads(data)
    assert len(shown["nodes"]) == page.nodes
    assert shown["title"] == "A <ViT> & its tape"
    reader = Reader()
    reader.feed(text)
    assert all(re.match("#|data:", address) for address in reader.addresses)
    assert not re.findall(r"@import|url\((?!['\"]?(?:#|data:))", reader.styles)
    [policy] = reader.policies  # so that the browser itself refuses whatever the code might ask for
    assert policy.startswith("default-src 'none';")
    assert not re.search("https?:|connect-src|font-src|\\*", policy)


class Reader(HTMLParser):
    """What a page refers to, its styles, and what it allows itself."""

    def __init__(self):
        super().__init__()
        self.addresses, self.policies, self.styles, self.inside = [], [], "", ""

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        named = dict(attributes)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "srcset", "data")]
        self.styles += named.get("style") or ""
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(named["content"])

    def handle_data(self, data):
        self.styles += data if self.inside == "style" else ""


def test_the_page_in_the_package_has_its_places_and_its_licences():
    text = (FILES / "page.html").read_text(encoding="utf-8")
    for place in ("{{title}}", "/*{{page.css}}*/", "/*{{vendor}}*/", "/*{{script}}*/", "{{data}}"):
        assert place in text
    for path in FILES.rglob("*.js"):
        assert "</script" not in path.read_text(encoding="utf-8")  # it would end the element that it stands in
    assert list(FILES.glob("vendor/*LICENSE*"))


def test_what_ends_a_script_is_escaped_in_the_data():
    loss = leaf(1.0).sum()
    data = facts(loss, title="</script><!--<script>{{data}}")
    text = assembled(data)
    assert "</script><!--" not in text
    [inside] = re.findall(r'id="tape">(.*?)</script>', text, flags=re.DOTALL)
    assert json.loads(inside)["title"] == "</script><!--<script>{{data}}"


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    page = tmp_path / "tape.html"
    page.write_text("old")
    monkeypatch.setattr(document, "as_json", lambda data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tv.study.explain(leaf(1.0).sum(), page)
    assert page.read_text() == "old"
    monkeypatch.undo()
    with pytest.raises(OSError, match="it is a folder"):
        tv.study.explain(leaf(1.0).sum(), tmp_path)


# --------------------------------------------------------------------------------------------------------------- errors


def swept_loss():
    loss = leaf(1.0, 2.0).sum()
    loss.backward()
    return loss


def overwritten_loss():
    x = leaf(1.0, 2.0)
    loss = (x * x).sum()
    with tv.no_grad():
        x += 1.0
    return loss


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda: 3.0, TypeError, "a tape belongs to a Tensor that was computed, not to a float"),
        (lambda: tv.tensor([1.0]).sum(), tv.TapeError, "this Tensor has no tape: nothing with requires_grad=True"),
        (lambda: leaf(1.0, 2.0) * 2.0, ValueError, r"explains a single number, and this Tensor has the shape \(2,\)"),
        (swept_loss, tv.TapeError, "this tape was swept already: the gradient of `sum` was taken"),
        (overwritten_loss, tv.TapeError, "`multiply` saved its argument .* and it was overwritten since"),
    ],
)
def test_what_cannot_be_explained_is_told_in_a_sentence(tmp_path, loss, error, message):
    loss = loss()
    with pytest.raises(error, match=message):
        tv.study.explain(loss, tmp_path / "tape.html")
    assert not list(tmp_path.iterdir())


def test_a_leaf_alone_is_a_tape_of_one_node():
    x = tv.tensor(2.0, requires_grad=True)
    data = facts(x)
    assert (data["totals"]["nodes"], data["nodes"][0]["gradient"]["numbers"]) == (1, 1.0)


# ------------------------------------------------------------------------------------------------------ table and graph


def test_the_table_of_a_model_has_a_line_a_node_and_the_totals():
    loss, *_ = vit_loss(small_vit())
    text = str(tv.study.tape(loss))
    lines = text.splitlines()
    data = facts(loss)
    assert len(lines) == len(data["nodes"]) + 4
    assert [line.split()[0] for line in lines[2:-2]] == [str(n["id"]) for n in data["nodes"]]
    row = next(line for line in lines if "multi_head_attention" in line)
    assert re.fullmatch(
        r" *\d+ +multi_head_attention +\d+ +\(3,7,16\) +float32 +[\d,]+ +-\S+ … \S+ +tinyvit/layers/encoder\.py:\d+",
        row,
    )
    assert lines[-1].endswith(
        f"{data['totals']['saved_bytes']:,} bytes saved for the backward sweep, values of leaves not counted"
    )
    assert "line" not in str(tv.study.tape(leaf(1.0).sum())).splitlines()[0]


def test_the_graph_names_every_node_and_edge():
    x = leaf(1.0, 2.0)
    with tv.study.watch():
        parts = ops.split(x, 2)
        loss = (parts[0] * parts[1]).sum()
    text = tv.study.tape(loss).to_dot()
    assert len(re.findall(r"^  n\d+ \[label=", text, flags=re.MULTILINE)) == 6
    assert text.count(" -> ") == 6
    assert '  n1 -> n2 [label=""];' in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_draws_the_graph():
    loss, *_ = vit_loss(small_vit())
    text = tv.study.tape(loss).to_dot()
    drawn = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True).stdout
    assert drawn.count('class="node"') == len(tv.study.tape(loss).nodes)


def test_what_is_passed_back_adds_up_to_each_gradient():
    """A gradient is explained by its parts: each use of a value, broadcast or not, and each result of a split."""
    rng = np.random.default_rng(5)
    x, b = (tv.tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((2, 4), (4,)))
    left, right = tv.ops.split(x * x + b, 2, axis=1)
    loss = (tv.ops.exp(left) * right + b[:2] * x[:, 1:3]).sum()
    data = facts(loss)
    parts = {}
    for step in data["sweep"]:
        for gift in step["gives"]:
            parts.setdefault(gift["to"], []).append(gift["value"])
    several = 0
    for node in data["nodes"][:-1]:
        if node["op"] == "split" and node["kind"] == "op":
            continue  # its parts lie beside one another
        total = sum(np.array(part["numbers"]) for part in parts[node["id"]])
        np.testing.assert_allclose(total, node["gradient"]["numbers"], rtol=1e-12)
        several += len(parts[node["id"]]) > 1
    assert several == 2


def test_a_rule_that_is_overheard_is_itself_again_afterwards():
    before = tv.engine.Primitive.pull_back
    broken = tv.primitive(lambda xp, x: x * 1.0)
    broken.gradients(x=lambda F, gy: None)
    with pytest.raises(tv.TapeError):
        facts(broken(leaf(1.0)).sum())
    assert tv.engine.Primitive.pull_back is before


def test_a_part_that_was_summed_over_what_was_broadcast_says_from_which_shape():
    x = tv.tensor(np.ones(3), requires_grad=True)
    data = facts((np.ones((2, 3)) * x + x).sum())
    parts = [gift for step in data["sweep"] for gift in step["gives"] if gift["to"] == 0]
    assert [(part["summed"], part["value"]["numbers"]) for part in parts] == [([2, 3], [2.0] * 3)] * 2
    assert [gift["summed"] for step in data["sweep"] for gift in step["gives"] if gift["to"] != 0] == [None, None]
