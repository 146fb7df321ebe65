"""The GPU's kernels beside their twins, and training with graphs, precisions and pinned copies. Needs an NVIDIA GPU."""

import contextlib
import json
from functools import partial

import numpy as np
import pytest

import tinyvit as tv
from tinyvit import cli
from tinyvit.data import Loader, digits
from tinyvit.engine import kernels, random
from tinyvit.engine.backend import namespace_on
from tinyvit.engine.ops.nn import _cross_entropy
from tinyvit.training import AdamW, Interrupted, Trainer, cosine, parallel_backward
from tinyvit.training.graph import StepGraph
from tinyvit.training.transfer import on_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not tv.gpu_available(), reason="CuPy or a GPU is missing")]

PRECISIONS = {"fp32": 2e-6, "tf32": 2e-3, "bf16": 1.5e-2, "fp16": 2e-3}  # ‖difference‖ / ‖float64‖ that is rounding
HALF = {"bf16": "bfloat16", "fp16": "float16"}


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


added = tv.ops.add_layer_norm


def both(x, branch, weight, bias):
    """A number of each result, side by side, so that the sum's gradient comes both ways."""
    s, norm = added(x, branch, weight, bias)
    return tv.ops.concatenate([s, norm.astype(s.dtype)])


def cases():
    linear, gelu, norm, attention = tv.ops.linear, tv.ops.gelu, tv.ops.layer_norm, tv.ops.multi_head_attention
    for rows, wide, out in [((2, 197), 64, 96), ((3, 5), 7, 9), ((700,), 192, 10), ((1,), 8, 8)]:
        yield f"linear {rows} {wide} {out}", linear, [normal(*rows, wide), normal(out, wide), normal(out)]
        yield f"linear without bias {rows} {wide}", linear, [normal(*rows, wide), normal(out, wide), None]
    for shape in [(3, 5, 7), (40, 50, 64), (1, 1)]:
        yield f"gelu {shape}", gelu, [2 * normal(*shape)]
        yield f"layer_norm {shape}", norm, [normal(*shape, 12) + 1, normal(12), normal(12)]
    yield "layer_norm, odd", norm, [normal(700, 13) + 1, normal(13), normal(13)]
    yield "layer_norm, wide", norm, [normal(5, 768) + 1, normal(768), normal(768)]
    for rows, wide in [((3, 5), 12), ((700,), 13), ((5,), 768), ((1,), 5)]:
        given = [normal(*rows, wide) + 1, normal(*rows, wide, seed=1), normal(wide), normal(wide)]
        for used, of in [("both", both), ("the norm", lambda *a: added(*a)[1]), ("the sum", lambda *a: added(*a)[0])]:
            yield f"add_layer_norm {rows} {wide}, {used} used", of, given
    for rows, wide in [((3, 5), 16), ((70,), 13)]:  # a branch from a product, which is of 16 bits where it may be
        given = [normal(*rows, wide) + 1, normal(*rows, wide, seed=1), np.eye(wide), normal(wide), normal(wide)]
        yield (
            f"add_layer_norm {rows} {wide} of a product",
            lambda x, b, eye, *norm: both(x, linear(b, eye), *norm),
            given,
        )
    for shape in [(5, 10), (2, 3, 1000), (4, 1)]:
        target = np.abs(normal(*shape, seed=2))
        yield f"cross_entropy {shape}", _cross_entropy, [3 * normal(*shape), target / target.sum(-1, keepdims=True)]
    for images, tokens, heads, d in [
        (2, 197, 3, 64), (1, 64, 1, 64), (2, 65, 2, 48), (1, 600, 1, 32), (3, 5, 3, 16), (2, 63, 1, 80), (1, 1, 2, 32),
        (2, 17, 2, 12), (2, 130, 1, 128),
    ]:  # fmt: skip
        name = f"attention {images} images, {tokens} tokens, {heads} heads of {d}"
        yield name, partial(attention, num_heads=heads), [normal(images, tokens, 3 * heads * d)]


CASES = {name: (op, arguments) for name, op, arguments in cases()}


def computed(op, arguments, gy, device, dtype, precision="fp32", half=None):
    """Value and gradients as float64 arrays on the host."""
    leaves = [a if a is None else tv.tensor(a.astype(dtype), device=device, requires_grad=True) for a in arguments]
    given = [leaf.astype(half) if half and leaf is not None else leaf for leaf in leaves]
    with tv.precision(precision):
        y = op(*given)
    y.backward(tv.tensor(gy.astype(dtype), device=device).astype(y.dtype).data)
    return [t.astype(np.float64).numpy() for t in (y, *(leaf.grad for leaf in leaves if leaf is not None))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_gives_its_twins_values_and_gradients(name, precision):
    op, arguments = CASES[name]
    half = HALF.get(precision) if name.startswith("attention") else None  # the others convert what they are given
    with tv.no_grad():
        shape = op(*arguments).shape
    gy = normal(*shape, seed=1)
    if half:  # so that rounding the input counts for neither
        arguments = [
            tv.tensor(a.astype(np.float32), device="gpu").astype(half).astype(np.float64).numpy() for a in arguments
        ]
    exact = computed(op, arguments, gy, "cpu", np.float64)
    found = computed(op, arguments, gy, "gpu", np.float32, precision, half)
    again = computed(op, arguments, gy, "gpu", np.float32, precision, half)
    for a, b, c in zip(found, exact, again, strict=True):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= PRECISIONS[precision] * max(np.linalg.norm(b), 1e-30)
        assert (a == c).all()  # the same bits again


@pytest.mark.parametrize(
    "op",
    [
        "linear",
        "gelu",
        "layer_norm",
        "add_layer_norm",
        "multi_head_attention",
        "cross_entropy",
        "adamw",
        "ema",
        "square_sum",
    ],
)
def test_the_gpu_has_a_kernel_for(op):
    assert kernels.find(op, "gpu")


def test_a_nan_stays_a_nan():
    for op, arguments in CASES.values():
        spoiled = [None if a is None else a.copy() for a in arguments]
        spoiled[0].reshape(-1)[0] = np.nan
        with tv.no_grad():
            y = op(*(None if a is None else tv.tensor(a.astype(np.float32), device="gpu") for a in spoiled))
        assert np.isnan(y.numpy()).any()


def test_a_class_that_cannot_be_costs_nothing_unless_it_is_the_target():
    logits = tv.tensor([[0.0, -np.inf, 1.0], [-np.inf, 0.0, 0.0]], device="gpu", requires_grad=True)
    losses = tv.ops.cross_entropy(logits, np.array([2, 0]), reduction="none")
    losses.backward(tv.tensor([1.0, 0.0], device="gpu").data)
    np.testing.assert_allclose(losses.numpy(), [np.log(1 + np.exp(-1)), np.inf], rtol=1e-6)
    p = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(logits.grad.numpy()[0], [1 - p, 0, p - 1], rtol=1e-5, atol=1e-7)


def test_float64_and_views_are_left_to_the_array_code():
    x = tv.tensor(normal(6, 8), device="gpu", requires_grad=True)
    weight = tv.tensor(normal(4, 8), device="gpu")
    with tv.precision("bf16"):
        y = tv.ops.linear(x, weight)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y.numpy(), x.numpy() @ weight.numpy().T, rtol=1e-12)
    small = tv.tensor(normal(8, 6).astype(np.float32), device="gpu")
    np.testing.assert_allclose(tv.ops.gelu(small.T).numpy(), tv.ops.gelu(small).numpy().T, rtol=1e-6, atol=1e-6)


def test_a_view_that_begins_anywhere_is_read_right():
    xp = namespace_on("gpu")
    for name in (
        "linear (700,) 192 10",
        "gelu (40, 50, 64)",
        "layer_norm, wide",
        "add_layer_norm (5,) 768, both used",
        "attention 2 images, 197 tokens, 3 heads of 64",
    ):
        op, arguments = CASES[name]
        there = [xp.asarray(a.astype(np.float32)) for a in arguments]
        shifted = [xp.empty(a.size + 1, np.float32)[1:].reshape(a.shape) for a in there]
        for view, a in zip(shifted, there, strict=True):
            view[...] = a
        results = []
        for given in (there, shifted):
            leaves = [tv.Tensor(a) for a in given]  # of this very memory
            for leaf in leaves:
                leaf.requires_grad = True
            y = op(*leaves)
            y.backward(xp.cos(y.data))
            results.append([t.numpy() for t in (y, *(leaf.grad for leaf in leaves))])
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("half", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("wanted", [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 1, 0)])
@pytest.mark.parametrize("used", [(0, 1), (0,), (1,)])
def test_of_a_sum_and_its_norm_only_the_gradients_that_are_asked_for_are_made(half, wanted, used):
    x, branch, weight = normal(3, 8), normal(3, 8, seed=1), normal(8)

    def gradients(device, dtype, half=None):
        leaves = [tv.tensor(a.astype(dtype), device=device) for a in (x, branch, weight)]
        for leaf, on in zip(leaves, wanted, strict=True):
            leaf.requires_grad = bool(on)
        results = added(leaves[0], leaves[1].astype(half or dtype), leaves[2], leaves[2].detach())
        if device == "gpu":
            assert results[0].node.parents[0].kernel
        sum((results[i] ** 3).sum() for i in used).backward()
        assert [leaf.grad is not None for leaf in leaves] == [*map(bool, wanted)]
        return [leaf.grad.numpy() for leaf in leaves if leaf.grad is not None]

    branch = tv.tensor(branch.astype(np.float32), device="gpu").astype(half or np.float32).astype(np.float64).numpy()
    tolerance = PRECISIONS[{"bfloat16": "bf16", "float16": "fp16", None: "fp32"}[half]]
    for a, b in zip(gradients("gpu", np.float32, half), gradients("cpu", np.float64), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * (1 + np.abs(b).max()))


def test_more_heads_than_a_grid_has_rows():
    qkv = tv.tensor(normal(16400, 2, 3 * 4 * 16).astype(np.float32), device="gpu").astype("float16")
    y = tv.ops.multi_head_attention(qkv, 4)
    last = tv.ops.multi_head_attention(qkv[-3:], 4)
    assert (y.numpy()[-3:] == last.numpy()).all()


def test_one_step_of_the_optimizer_is_that_of_the_array_code():
    def moved(on):
        leaves = [
            tv.tensor(normal(3, 5, seed=i).astype(np.float32), device="gpu", requires_grad=True) for i in range(3)
        ]
        optimizer = AdamW(leaves, lr=1e-2, weight_decay=0.1)
        with kernels.switched(on):
            for turn in range(3):
                optimizer.zero_grad()
                sum((leaf * leaf * float(turn + 1)).sum() for leaf in leaves).backward()
                optimizer.step()
        return np.concatenate([leaf.numpy() for leaf in leaves])

    np.testing.assert_allclose(moved(True), moved(False), rtol=2e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- dropout


def test_dropout_by_a_counter_keeps_its_share_and_takes_another_choice_each_time():
    ones = tv.tensor(np.ones((400, 500), np.float32), device="gpu", requires_grad=True)
    with random.on_gpu():
        tv.seed(3)
        first, second = tv.ops.dropout(ones, 0.3), tv.ops.dropout(ones, 0.3)
        tv.seed(3)
        again = tv.ops.dropout(ones, 0.3).numpy()
    values = first.numpy()
    assert set(np.unique(values)) == {0.0, np.float32(1 / 0.7)}
    assert abs((values == 0).mean() - 0.3) < 0.005
    assert (
        abs(((values == 0) & (second.numpy() == 0)).mean() - 0.09) < 0.005
    )  # the two choices know nothing of each other
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.01
    assert (again == values).all()
    first.backward(tv.tensor(np.ones_like(values), device="gpu").data)
    assert (ones.grad.numpy() == values).all()


# -------------------------------------------------------------------------------------------------------------- graphs

SMALL = tv.ViTConfig(image_size=16, patch_size=4, channels=1, num_classes=10, dim=32, depth=2, num_heads=2, dropout=0.2)


def stepping(config, precision="fp32", graph=True):
    """(a function that makes a step and returns its loss, the graph)"""
    model = tv.ViT(config, np.random.default_rng(0))
    model.to(device="gpu")
    optimizer = AdamW(model.named_parameters(), lr=1e-3)

    def sweep(images, labels):
        with tv.precision(precision):
            loss = parallel_backward(lambda x, y: tv.ops.cross_entropy(model(x), y), images, labels)
        return (loss.data,)

    step = StepGraph(sweep, optimizer.parameters)
    if not graph:
        step._record = lambda batch: None

    def one(number, batch=16):
        xp, rng = namespace_on("gpu"), np.random.default_rng(number)
        images = xp.asarray(rng.standard_normal((batch, 1, 16, 16)).astype(np.float32))
        optimizer.zero_grad()
        tv.seed(number)
        (loss,) = step(images, xp.asarray(rng.integers(0, 10, batch)))
        loss = float(loss)
        optimizer.step()
        return loss

    return one, step


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_gives_the_bits_of_the_same_steps_without_one(precision):
    with_graph, graph = stepping(SMALL, precision)
    without, plain = stepping(SMALL, precision, graph=False)
    assert [with_graph(i) for i in range(8)] == [without(i) for i in range(8)]
    assert graph.recorded
    assert not plain.recorded


def test_a_batch_of_another_shape_is_computed_without_the_graph_and_told_once(capsys):
    with_graph, _ = stepping(SMALL)
    without, _ = stepping(SMALL, graph=False)
    sizes = [16, 16, 16, 16, 5, 16, 5, 16]
    losses = [with_graph(i, size) for i, size in enumerate(sizes)]
    assert capsys.readouterr().err.count("a batch of 5×1×16×16 and 5 is not of the graph's shape") == 1
    np.testing.assert_allclose(losses, [without(i, size) for i, size in enumerate(sizes)], rtol=1e-6)


def test_a_step_that_cannot_be_recorded_is_computed_all_the_same(capsys):
    config = tv.ViTConfig(16, 4, channels=1, num_classes=10, dim=32, depth=1, num_heads=2, attention_dropout=0.1)
    step, graph = stepping(config)
    losses = [step(i) for i in range(6)]
    assert np.isfinite(losses).all()
    assert not graph.recorded
    assert "cannot be recorded" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ training


def losses_of(device, steps=30, **settings):
    data = digits()
    mean, std = data.statistics()
    loader = Loader(data.train, 64, mean=mean, std=std, shuffle=True, drop_last=True)
    config = tv.ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=10, dim=64, depth=3, num_heads=4)
    model = tv.ViT(config, np.random.default_rng(0))
    model.to(device=device)
    schedule = cosine(1e-3, total=400, warmup=50)
    trainer = Trainer(model, AdamW(model.named_parameters()), schedule, loader, epochs=9, clip_norm=1.0, **settings)
    found, before = [], 0.0

    def on_step(trainer):
        nonlocal before
        total = float(trainer._totals.loss)
        found.append((total - before) / 64)
        before = total
        trainer.stop = len(found) >= steps

    with contextlib.suppress(Interrupted):
        for _ in trainer.run(on_step):
            before = 0.0
    return np.array(found), trainer


def test_cpu_and_gpu_train_alike():
    cpu, _ = losses_of("cpu")
    for settings in ({}, {"graph": True}):
        gpu, _ = losses_of("gpu", **settings)
        np.testing.assert_allclose(gpu, cpu, rtol=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 1e-3), ("bf16", 1e-2), ("fp16", 1e-2)])
def test_16_bits_train_nearly_as_32_do(precision, tolerance):
    exact, _ = losses_of("gpu")
    found, trainer = losses_of("gpu", precision=precision)
    assert np.abs(found / exact - 1).max() < tolerance
    assert {p.dtype for p in trainer.model.parameters()} == {np.dtype(np.float32)}
    assert {p.grad.dtype for p in trainer.model.parameters()} == {np.dtype(np.float32)}


def test_batches_arrive_whole_through_pinned_memory_also_when_they_are_used_late():
    rng = np.random.default_rng(0)
    sent = [(rng.standard_normal((n, 300, 40)).astype(np.float32), np.arange(n)) for n in (64, 64, 64, 64, 10)]
    xp = namespace_on("gpu")
    sums = []
    for images, labels in on_device(iter(sent), "gpu"):
        for _ in range(20):  # keep the GPU busy, so that a copy that did not wait would show
            xp.sin(images)
        sums.append((images.sum(), labels.copy(), len(labels)))
    for (images, labels), (total, there, count) in zip(sent, sums, strict=True):
        np.testing.assert_allclose(float(total), images.sum(dtype=np.float64), rtol=1e-3, atol=0.5)
        assert (there.get() == labels).all()
        assert count == len(labels)


@pytest.mark.parametrize("flags", [["--graph"], ["--precision", "bf16", "--graph"], ["--precision", "fp16"], []])
def test_the_command_trains_the_digits_on_a_gpu(tmp_path, flags):
    out = tmp_path / "run"
    assert cli.main(["train", "--device", "gpu", "--epochs", "12", "--out", str(out), *flags]) == 0
    final = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert final["test_accuracy"] > 0.9


def test_a_run_with_a_graph_and_dropout_goes_on_as_if_it_had_not_stopped(tmp_path):
    flags = ["--device", "gpu", "--graph", "--precision", "fp16", "--set", "model.dropout=0.1"]
    flags += ["--set", "training.checkpoint_epochs=1", "--set", "training.warmup_epochs=1"]
    assert cli.main(["train", "--epochs", "4", "--out", str(tmp_path / "whole"), *flags]) == 0
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    half = tmp_path / "half"
    half.mkdir()
    for name in ("config.toml", "metrics.jsonl"):
        (half / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (half / "checkpoints").mkdir()
    first = sorted((tmp_path / "whole" / "checkpoints").iterdir())[0]
    (half / "checkpoints" / first.name).write_bytes(first.read_bytes())
    assert cli.main(["train", "--resume", "--out", str(half), "--device", "gpu", "--graph"]) == 0
    assert (half / "model.safetensors").read_bytes() == whole
