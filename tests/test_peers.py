"""Values and gradients against PyTorch, op by op, on the samples of tinyvit/study/audit/samples.py."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinyvit as tv
from tinyvit.study.audit.samples import NOT_DIFFERENTIABLE, SAMPLES

torch = pytest.importorskip("torch")

from torch_peer import PEER

# What PyTorch has not, or does not let be differentiated
LACKING = NOT_DIFFERENTIABLE | {"astype", "to_device", "dropout", "drop_path", "zeros_like"}
DIFFERENT = {
    "logsumexp: (2,3) (2,3) masked, one row wholly",  # NaN in place of 0 where everything is −∞
    "softmax: (2,3) axis=(0, 1)",  # one axis only
    "log_softmax: (2,3) axis=(0, 1)",
    "var: (0,3) axis=1",  # warns
}
SHARED = [s for s in SAMPLES if s.op not in LACKING and str(s) not in DIFFERENT]


def test_the_samples_left_out_exist():
    assert {str(s) for s in SAMPLES} >= DIFFERENT
    assert {s.op for s in SAMPLES} | NOT_DIFFERENTIABLE >= LACKING


def compare(f, inputs, peers):
    """Values, and gradients along one random cotangent for each result."""
    ours = f(*inputs)
    theirs = f(*peers, F=PEER)
    assert [y.shape for y in ours] == [tuple(z.shape) for z in theirs]
    rng = np.random.default_rng(1)
    vs = [rng.standard_normal(y.shape) for y in ours]
    wanted = [i for i, x in enumerate(inputs) if x.requires_grad]
    gradients = tv.grad(ours, [inputs[i] for i in wanted], vs, allow_unused=True)
    expected = torch.autograd.grad(theirs, [peers[i] for i in wanted], list(map(torch.tensor, vs)), allow_unused=True)
    for y, z in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-11, atol=1e-12)
    for i, g, e in zip(wanted, gradients, expected, strict=True):
        g = np.zeros(inputs[i].shape) if g is None else g.numpy()
        np.testing.assert_allclose(g, 0 * g if e is None else e.numpy(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("sample", SHARED, ids=str)
def test_values_and_gradients_are_pytorchs(sample):
    arrays = sample.arrays()
    peers = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    compare(sample, sample.tensors(), peers)


@given(st.data())
def test_a_drawn_transformer_block_is_pytorchs(data):
    """The ops of an encoder layer, put together, in shapes that hypothesis draws."""
    b, n, d, heads = (data.draw(st.integers(1, 3)) for _ in range(4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    draw = lambda *shape: rng.standard_normal(shape)
    d *= heads
    arrays = [draw(b, n, d), draw(3 * d, d), draw(3 * d), draw(d), draw(d), draw(2 * d, d), draw(d, 2 * d)]

    def block(x, qkv, qkv_bias, weight, bias, w1, w2, F=tv.ops):
        y = F.linear(F.layer_norm(x, weight, bias), qkv, qkv_bias)
        y = F.transpose(F.reshape(y, (b, n, 3, heads, d // heads)), (2, 0, 3, 1, 4))
        y = F.scaled_dot_product_attention(y[0], y[1], y[2])
        x = x + F.reshape(F.swapaxes(y, 1, 2), (b, n, d))
        x = x + F.linear(F.gelu(F.linear(F.layer_norm(x, weight, bias), w1)), w2)
        return [F.cross_entropy(F.mean(x, axis=1), targets[F], label_smoothing=0.1), x]

    classes = rng.integers(0, d, b)
    targets = {tv.ops: classes, PEER: torch.tensor(classes)}
    compare(
        block, [tv.tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    )


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3), st.booleans())
def test_a_drawn_elementwise_formula_is_pytorchs(drawn, ties):
    """Broadcasting three ways at once; with ties, so that the choices at kinks are compared too."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-1, 2, s).astype(float) if ties else rng.standard_normal(s) for s in drawn.input_shapes]

    def formula(a, b, c, F=tv.ops):
        y = F.maximum(a, b) * F.abs(c) - F.minimum(b, c) / (2 + F.sin(a) * F.tanh(c))
        return [F.where(a > c, y, F.relu(b * c)) + F.clip(a, -1, 1) * F.sigmoid(b) ** 2 + F.exp(c) ** 1.5]

    compare(
        formula,
        [tv.tensor(a, requires_grad=True) for a in arrays],
        [torch.tensor(a, requires_grad=True) for a in arrays],
    )


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_float32_gelu_agrees_over_its_whole_range(form):
    x = np.linspace(-12, 12, 2001, dtype=np.float32)
    ours, theirs = tv.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = tv.ops.gelu(ours, approximate=form), PEER.gelu(theirs, approximate=form)
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-6, atol=1e-6)
    y.sum().backward()
    z.sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=0, atol=5e-6)


def test_third_derivatives_are_pytorchs():
    x = np.array([0.3, -1.2, 0.8])
    ours, theirs = tv.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = tv.ops.softmax(tv.ops.gelu(ours)) * ours, torch.softmax(torch.nn.functional.gelu(theirs), -1) * theirs
    for _ in range(3):
        [y] = tv.grad((y * x).sum(), [ours], create_graph=True)
        [z] = torch.autograd.grad((z * torch.tensor(x)).sum(), [theirs], create_graph=True)
        np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-10)
    assert math.isfinite(float(y.sum()))
