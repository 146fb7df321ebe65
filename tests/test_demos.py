"""Every demo runs and says what its text says."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.pretrained import save_pretrained

DEMOS = sorted((Path(__file__).parent.parent / "demos").glob("*.py"))
SAYS = {
    "01_five_numbers": [
        "y = 0.604368, recorded as Tensor(0.60436778, dtype=float64, op=tanh)",
        "∂y/∂x1 tape -1.904219   by hand -1.904219",
        "∂y/∂w1 tape  1.269479   by hand  1.269479",
        "∂y/∂b  tape  0.634740   by hand  0.634740",
    ],
    "02_an_engine_in_100_lines": [
        "the engine: 87 lines",
        "an MLP with its loss   gradients differ from tinyvit's by",
        "attention, in a batch  gradients differ from tinyvit's by",
        "10,000 additions deep: ∂y/∂x = 1.0",
    ],
    "03_the_order_of_the_sweep": [
        "breadth first                     6           6",
        "depth first                      96           6",
        "creation order                   96          96",
        "a second backward(): the gradient of `add` was taken before and its saved values are freed; pass retain_graph",
        "two more sweeps, with retain_graph=True: x.grad is 288",
    ],
    "04_softmax_and_cross_entropy": [
        "[[ 0.2078 -0.183  -0.0248]",
        "∂L/∂z: tape [ 0.7054 -0.7405  0.0351], by hand [ 0.7054 -0.7405  0.0351], through the Jacobian [ 0.7054 -0.74",
        "L of logits 1000 and 998: inf as written, 2.1269 with the maximum taken out",
        "softmax with the rule 'zeros': .sum() sees nothing",
        "tv.gradcheck sees it: softmax: the gradient of input 0 is wrong at element (0,), for element (0,) of the res",
    ],
    "05_one_attention_head": [
        *(
            f"∂L/∂{name:<3} {shape:<7} by hand and by the tape: equal to 12 digits"
            for name, shape in (("S", "(5, 5)"), ("Q", "(5, 4)"), ("W_K", "(4, 6)"), ("X", "(5, 6)"))
        ),
        "erratum 2: softmax(Q·Kᵀ/√d_k) of columns is (4, 4), features by features, not (5, 5), tokens",
        "erratum 14: with A taken for a constant, ∂L/∂X = ∂L/∂V·W_V, off by 55%",
    ],
    "06_patches_are_a_product": [
        "────────┼────────",
        "4 patches of 16 numbers, times W_eᵀ: (4, 6)",
        "patch embedding = unfold and multiply = convolution of stride 4: equal to 12 digits",
        "∂L/∂W_e  (6, 1, 4, 4)  the tape's and the product's: equal to 12 digits",
        "∂L/∂I    (1, 1, 8, 8)  the tape's and the product's: equal to 12 digits",
    ],
    "07_train_digits": [
        "1259 images to train on, 179 to watch, 359 to test at the end",
        "102,666 parameters, 200 steps of 128 images",
        "epoch 20  loss 0.",
        "test accuracy 9",
    ],
    "08_a_loop_of_your_own": ["after 10 epochs: validation accuracy 9"],
    "09_attention_maps": [
        "trained to a test accuracy of 9",
        "the image         layer 1           layer 2",
        "a patch with ink gets 0.0",
        "what hiding one patch costs of the answer's probability: the read most 0.",
    ],
    "10_your_own_op": [
        "softplus: the rule agrees with finite differences, to second order",
        "softplus(±1000) = [0.0, 1000.0]: no overflow",
        "with a wrong sign: softplus: the gradient of input 0 is wrong at element",
    ],
    "11_break_a_rule": [
        "the rule as it is: 1 op or layer",
        "softmax (2,3) axis=-1, jacobian in float64: fail; worst of 36 at input 0, element (1, 0)",
        "methods that saw it: jacobian, complex step, second order, projections",
    ],
    "12_curvature": [
        "step 1: f was 2.42e+01, now at (-1.175281, 1.380674)",
        "step 6: f was",
        "now at (1.000000, 1.000000)",
        "Hessian-vector product of 7,130 parameters:",
    ],
    "13_on_a_gpu": ["cpu fp32          loss 2.3026 →", "in 38 steps of"]
    + (
        ["bf16 on the GPU beside float32 on the CPU: losses differ by", "with a graph: the same bits"]
        if tv.gpu_available()
        else ["No GPU here, so all of it on the CPU:"]
    ),
    "14_a_logger_of_your_own": [
        "9 records in metrics.jsonl, 8 rows in epochs.csv: event, epoch, step, loss, train_accuracy, lr, seconds",
        "loss                 █",
        "validation accuracy  ▁",
        "▁  to 0.",
        "█  to 9",
        ", of 80 steps",
    ],
    "15_features_as_colours": [
        "trained to a test accuracy of 9",
        "359 images of 4×4 patches: three of 32 numbers keep",
        "the image         red               green             blue",
        "the colour of one empty patch names its digit in ",
    ],
    "16_a_probe": [
        "trained on 10,096 canvases with 0 to 4: ",
        "the digits 5 to 9: 89 images to learn from, 628 to test",
        "                k-NN   linear\nrandom weights  ",
        "these weights   ",
    ],
    "17_fine_tune": [
        "weights that name ten digits: test accuracy 9",
        "head.weight, head.bias: a new head of 2 classes, zero at first",
        "odd or even, learned from 40 images: test accuracy ",
        "% from scratch, 9",
    ],
}


def run(demo, folder, *arguments):
    command = [sys.executable, "-X", "utf8", "-W", "error", demo, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def demo_named(start):
    [path] = [demo for demo in DEMOS if demo.stem.startswith(start)]
    return path


def test_every_demo_is_checked():
    assert [demo.stem for demo in DEMOS] == sorted(SAYS)


LONG = {"15_features_as_colours", "16_a_probe", "17_fine_tune"}


@pytest.mark.parametrize(
    "demo",
    [pytest.param(demo, id=demo.stem, marks=pytest.mark.slow if demo.stem in LONG else []) for demo in DEMOS],
)
def test_a_demo_says_what_it_promises(demo, tmp_path):
    said = run(demo, tmp_path)
    for line in SAYS[demo.stem]:
        assert line in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.stem)
def test_a_demo_says_how_it_is_run_and_stands_in_the_index(demo):
    docstring = demo.read_text(encoding="utf-8").split('"""')[1]
    assert f"\n    python demos/{demo.name}" in docstring
    index = (demo.parent / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[{demo.stem[:2]} .*\]\({demo.name}\) \|", index, flags=re.MULTILINE)


@pytest.mark.slow
def test_attention_maps_are_drawn_where_somebody_asks(tmp_path):
    pytest.importorskip("matplotlib")
    assert "six digits and their maps: maps.png" in run(demo_named("09"), tmp_path, "maps.png")
    assert [path.name for path in tmp_path.iterdir()] == ["maps.png"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Fresh weights for images of 16×12 pixels in colour, as timm and as transformers keep them."""
    model = tv.ViT(tv.ViTConfig(image_size=(16, 12), patch_size=4, dim=64, depth=2, num_heads=1, num_classes=3))
    folder = tmp_path_factory.mktemp("weights")
    for layout in LAYOUTS:
        save_pretrained(model, folder / layout, layout)
    return folder


LAYOUTS = ("timm", "huggingface")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_of_photographs_by_named_weights_are_colours(layout, weights, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    photographs = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, shape in zip(photographs, ((40, 30, 3), (20, 50, 3)), strict=True):
        image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    said = run(demo_named("15"), tmp_path, weights / layout, *photographs, "--out", "colours.png")
    assert "2 images of 4×3 patches: three of 64 numbers keep" in said
    assert "images and colours: colours.png" in said
    with image.open(tmp_path / "colours.png") as picture:
        assert np.ptp(np.asarray(picture.convert("RGB")), axis=2).max() > 100  # it has colours
    assert "2 images of 6×6 patches" in run(demo_named("15"), tmp_path, weights / layout, *photographs, "--size", "24")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_named_weights_are_probed_and_tuned(layout, weights, tmp_path):
    pytest.importorskip("PIL")
    said = run(demo_named("16"), tmp_path, weights / layout)
    assert "628 to test" in said
    assert re.search(r"^these weights   \d+\.\d%  \d+\.\d%$", said, flags=re.MULTILINE)
    assert "trained on" not in said
    said = run(demo_named("17"), tmp_path, weights / layout)
    assert "asked    num_classes = 2: the file has 3" in said
    assert "% from these weights" in said
    assert "ten digits" not in said
    assert not list(tmp_path.iterdir())


def test_colours_are_principal_components():
    """Beside the eigenvectors of the covariance; the sign of each is free."""
    spec = importlib.util.spec_from_file_location("features_as_colours", demo_named("15"))
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    model = tv.ViT(tv.ViTConfig(image_size=8, patch_size=2, channels=1, dim=16, depth=1, num_heads=1))
    images = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    found, shares = demo.colours(model, images)
    X = model.features(images).detach().numpy()[:, 1:].reshape(-1, 16).astype(np.float64)
    variances, vectors = np.linalg.eigh(np.cov(X.T))
    np.testing.assert_allclose(shares, variances[:-4:-1] / variances.sum(), rtol=1e-3)
    assert found.shape == (5, 4, 4, 3)
    assert found.min() == 0
    assert found.max() == 1
    for colour, vector in zip(found.reshape(-1, 3).T, vectors.T[:-4:-1], strict=True):
        inside = (colour > 0) & (colour < 1)  # what was not clipped
        assert abs(np.corrcoef(colour[inside], (X @ vector)[inside])[0, 1]) > 0.9999


def test_the_engine_in_100_lines_finds_the_gradients_of_a_reused_and_broadcast_value():
    """Beside differences, not tinyvit: a number that is stretched over an array and used four times."""
    spec = importlib.util.spec_from_file_location("engine_in_100_lines", demo_named("02"))
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)

    def f(s, x):
        e = engine.exp(x * s - s) / (s + 2.0)
        return engine.sum(engine.relu(e @ x.swapaxes(0, 1)), axis=1) + engine.sum(engine.log(s + e), axis=1)

    arrays = [np.array(0.7), np.random.default_rng(0).standard_normal((3, 4))]
    gy = np.array([1.0, -2.0, 0.5])
    leaves = [engine.Value(a) for a in arrays]
    f(*leaves).backward(gy)
    for leaf, direction in zip(leaves, (np.ones(()), np.random.default_rng(1).standard_normal((3, 4))), strict=True):
        values = []
        for h in (1e-6, -1e-6):
            moved = [engine.Value(other.data + (h * direction if other is leaf else 0)) for other in leaves]
            values.append(gy @ f(*moved).data)
        assert leaf.grad.shape == leaf.data.shape
        np.testing.assert_allclose((leaf.grad * direction).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-7)
