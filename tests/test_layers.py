"""Each layer against a closed form computed from raw arrays, and against finite differences."""

import math

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine.random import generator
from tinyvit.layers import (
    ACTIVATIONS,
    ClassificationHead,
    Dropout,
    DropPath,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    LayerScale,
    Linear,
    Module,
    MultiHeadSelfAttention,
    Parameter,
    PatchEmbedding,
    PositionalEncoding,
    PreLogits,
    patches,
)
from tinyvit.layers.embedding import sincos_2d
from tinyvit.layers.module import normal, xavier_uniform

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def filled(module, seed=1):
    """The layer in float64, with random numbers in all its parameters, so that no gradient hides behind a zero."""
    module.to(dtype=np.float64)
    for i, p in enumerate(module.parameters()):
        p.data[...] = random(*p.shape, seed=(seed, i))
    return module


def arrays(module):
    """The parameters' values, by name."""
    return {name: p.data for name, p in module.named_parameters()}


def pulled(module, x, *rest, seed=2):
    """Return y = module(x), a random ∂L/∂y, and by name what the tape makes of it; "x" is the input."""
    x = tv.tensor(x, requires_grad=True)
    module.zero_grad()
    y = module(x, *rest)
    gy = random(*y.shape, seed=seed)
    y.backward(gy)
    return y.numpy(), gy, {"x": x.grad.numpy(), **{n: p.grad.numpy() for n, p in module.named_parameters()}}


def assert_equal_by_name(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, **EXACT, err_msg=name)


def erf(x):
    return np.vectorize(math.erf)(x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# ------------------------------------------------------------------------------------- from an image to tokens


@pytest.mark.parametrize(("channels", "height", "width", "P"), [(3, 6, 6, 3), (1, 4, 8, 2), (2, 6, 3, 1), (3, 4, 4, 4)])
def test_patches_are_the_tutorials_slices_row_by_row(channels, height, width, P):
    images = random(2, channels, height, width)
    found = patches(tv.tensor(images), P).numpy()
    n = 0
    for i in range(height // P):
        for j in range(width // P):
            for b in range(2):
                slice_ij = images[b][:, i * P : (i + 1) * P, j * P : (j + 1) * P]
                np.testing.assert_array_equal(found[b, n], slice_ij.flatten())
            n += 1
    assert found.shape == (2, n, channels * P**2)


@pytest.mark.parametrize(("height", "width"), [(6, 4), (4, 6), (3, 3)])
def test_an_image_that_cannot_be_cut_into_patches_is_named_in_the_error(height, width):
    with pytest.raises(ValueError, match=rf"{height}×{width} pixels .* patches of 4×4"):
        patches(tv.tensor(np.zeros((1, 1, height, width))), 4)


def test_patch_embedding_is_a_convolution_whose_stride_is_the_patch():
    P, images = 2, random(2, 3, 4, 6)
    layer = filled(PatchEmbedding(P, 3, 5))
    weight, bias = arrays(layer)["proj.weight"], arrays(layer)["proj.bias"]
    convolved = np.empty((2, 5, 2, 3))
    for b, d, i, j in np.ndindex(convolved.shape):
        window = images[b, :, i * P : i * P + P, j * P : j * P + P]
        convolved[b, d, i, j] = (weight[d] * window).sum() + bias[d]
    tokens = convolved.reshape(2, 5, 6).transpose(0, 2, 1)
    np.testing.assert_allclose(layer(tv.tensor(images)).numpy(), tokens, **EXACT)


def test_patch_embedding_has_the_three_gradients_of_the_tutorial():
    P, images = 2, random(2, 3, 4, 6)
    layer = filled(PatchEmbedding(P, 3, 5))
    weight = arrays(layer)["proj.weight"].reshape(5, 12)
    _, gy, found = pulled(layer, images)
    expected = {"x": np.zeros_like(images), "proj.weight": np.zeros((5, 12)), "proj.bias": np.zeros(5)}
    for b, n in np.ndindex(2, 6):
        i, j = divmod(n, 3)
        here = b, slice(None), slice(i * P, i * P + P), slice(j * P, j * P + P)
        expected["x"][here] = (weight.T @ gy[b, n]).reshape(3, P, P)  # W_eᵀ · ∂L/∂E
        expected["proj.weight"] += np.outer(gy[b, n], images[here].flatten())  # Σ ∂L/∂E · flatten(I)ᵀ
        expected["proj.bias"] += gy[b, n]  # Σ ∂L/∂E
    expected["proj.weight"] = expected["proj.weight"].reshape(5, 3, P, P)
    assert_equal_by_name(found, expected)


def test_positions_are_added_and_their_gradient_is_summed_over_the_batch():
    layer = filled(PositionalEncoding((2, 3), 4, prefix=1))
    tokens = random(5, 7, 4)
    y, gy, found = pulled(layer, tokens, (2, 3))
    np.testing.assert_allclose(y, np.stack([sample + layer.table.data[0] for sample in tokens]), **EXACT)
    assert_equal_by_name(found, {"x": gy, "": sum(gy)[None]})


def test_sincos_positions_are_fixed_and_added():
    layer = PositionalEncoding((2, 3), 8, prefix=1, kind="sincos")
    assert list(layer.parameters()) == []
    tokens = random(5, 7, 8)
    expected = np.stack([sample + sincos_2d((2, 3), 8, 1)[0] for sample in tokens])
    np.testing.assert_allclose(layer(tv.tensor(tokens), (2, 3)).numpy(), expected, **EXACT)


def test_sincos_holds_column_and_row_at_a_quarter_as_many_frequencies_as_dimensions():
    D, prefix, grid = 16, 2, (3, 5)
    table = sincos_2d(grid, D, prefix)
    assert table.shape == (1, prefix + 15, D)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[0, :prefix], 0)
    np.testing.assert_array_equal(table[0, prefix], np.repeat([0, 1, 0, 1], 4))  # row 0, column 0: sin 0, cos 0
    for row, column in np.ndindex(*grid):
        angles = [(column / 10000 ** (k / 4), row / 10000 ** (k / 4)) for k in range(4)]
        expected = [f(angle[axis]) for axis in (0, 1) for f in (math.sin, math.cos) for angle in angles]
        np.testing.assert_allclose(table[0, prefix + row * 5 + column], expected, atol=1e-7)


@pytest.mark.parametrize("dim", [2, 6, 9])
def test_sincos_needs_a_width_that_is_a_multiple_of_four(dim):
    with pytest.raises(ValueError, match=f"multiple of 4, not {dim}"):
        PositionalEncoding((2, 2), dim, kind="sincos")


def test_an_unknown_kind_of_positions_is_an_error():
    with pytest.raises(ValueError, match=r"'learned' or 'sincos', not 'rotary'"):
        PositionalEncoding((2, 2), 8, kind="rotary")


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((7, 5), (3, 9)), ((14, 14), (8, 24)), ((2, 1), (3, 4))])
def test_positions_on_another_grid_are_pytorchs_bicubic(old, new):
    torch = pytest.importorskip("torch")
    layer = filled(PositionalEncoding(old, 6, prefix=2))
    table = layer.table.data
    square = torch.from_numpy(table[:, 2:].reshape(1, *old, 6)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, size=new, mode="bicubic", align_corners=False)
    expected = np.concatenate([table[:, :2], resized.permute(0, 2, 3, 1).reshape(1, -1, 6).numpy()], axis=1)
    tokens = random(3, 2 + new[0] * new[1], 6)
    np.testing.assert_allclose(layer(tv.tensor(tokens), new).numpy(), tokens + expected, **EXACT)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sincos_positions_on_another_grid_are_that_grids_own(dtype):
    layer = PositionalEncoding((2, 3), 8, prefix=1, kind="sincos").to(dtype=dtype)
    y = layer(tv.tensor(np.zeros((1, 21, 8), dtype)), (5, 4))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.numpy(), sincos_2d((5, 4), 8, 1).astype(dtype))


# ----------------------------------------------------------------------------------------------- the encoder


def head_by_head(p, x, gy, heads):
    """The tutorial's MHSA of one sample (N, D), forward and backward, each head with its own W_Q, W_K and W_V."""
    _, D = x.shape
    d_k = D // heads
    out = np.zeros_like(x)
    w_o = p["proj.weight"]
    g = {"x": np.zeros_like(x), **{name: np.zeros_like(value) for name, value in p.items()}}
    g_concat = gy @ w_o  # W_Oᵀ · ∂L/∂O′ for each row
    for h in range(heads):
        head = slice(h * d_k, (h + 1) * d_k)
        rows = {name: slice(k * D + h * d_k, k * D + (h + 1) * d_k) for k, name in enumerate("QKV")}
        w = {name: p["qkv.weight"][r] for name, r in rows.items()}
        q, k, v = (x @ w[name].T + p["qkv.bias"][r] for name, r in rows.items())
        a = softmax(q @ k.T / math.sqrt(d_k))
        o = a @ v
        out += o @ w_o[:, head].T
        g["proj.weight"][:, head] += gy.T @ o
        go = g_concat[:, head]
        ga = go @ v.T
        gs = a * (ga - (ga * a).sum(axis=1, keepdims=True)) / math.sqrt(d_k)
        for name, part in {"Q": gs @ k, "K": gs.T @ q, "V": a.T @ go}.items():
            g["x"] += part @ w[name]  # ∂L/∂X = W_Qᵀ · ∂L/∂Q + W_Kᵀ · ∂L/∂K + W_Vᵀ · ∂L/∂V
            g["qkv.weight"][rows[name]] += part.T @ x  # ∂L/∂W_Q = ∂L/∂Q · Xᵀ
            g["qkv.bias"][rows[name]] += part.sum(axis=0)
    g["proj.bias"] += gy.sum(axis=0)
    return out + p["proj.bias"], g


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_self_attention_is_the_tutorials_head_by_head_in_value_and_gradient(heads):
    layer = filled(MultiHeadSelfAttention(8, heads))
    x = random(3, 5, 8)
    y, gy, found = pulled(layer, x)
    samples = [head_by_head(arrays(layer), x[b], gy[b], heads) for b in range(3)]
    np.testing.assert_allclose(y, [out for out, _ in samples], **EXACT)
    expected = {name: sum(g[name] for _, g in samples) for name in arrays(layer)}
    assert_equal_by_name(found, {"x": np.stack([g["x"] for _, g in samples]), **expected})


def test_attention_to_look_at_is_a_distribution_over_keys_for_each_head():
    layer = filled(MultiHeadSelfAttention(8, 2))
    x = random(3, 5, 8)
    attention = layer.attention(tv.tensor(x)).numpy()
    assert attention.shape == (3, 2, 5, 5)
    for h in range(2):
        q, k = (x @ arrays(layer)["qkv.weight"][r : r + 4].T + arrays(layer)["qkv.bias"][r : r + 4]
                for r in (4 * h, 8 + 4 * h))  # fmt: skip
        np.testing.assert_allclose(attention[:, h], softmax(q @ k.transpose(0, 2, 1) / 2), **EXACT)


def test_attention_dropout_drops_weights_and_not_outputs():
    layer = filled(MultiHeadSelfAttention(8, 2, attention_dropout=0.5))
    x = random(3, 5, 8)
    tv.seed(3)
    y = layer(tv.tensor(x)).numpy()
    tv.seed(3)
    weights = layer.attention(tv.tensor(x)).numpy() * kept(0.5, 3, 2, 5, 5)
    values = layer.queries_keys_values(tv.tensor(x))[2].numpy()
    heads = (weights @ values).swapaxes(1, 2).reshape(3, 5, 8)
    np.testing.assert_allclose(y, heads @ arrays(layer)["proj.weight"].T + arrays(layer)["proj.bias"], **EXACT)


@pytest.mark.parametrize("heads", [3, 5, 16])
def test_heads_that_do_not_divide_the_width_are_an_error(heads):
    with pytest.raises(ValueError, match=f"{heads} heads cannot share a width of 8"):
        MultiHeadSelfAttention(8, heads)


def tanh_gelu(z):
    u = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return z * (1 + np.tanh(u)) / 2, (1 + np.tanh(u)) / 2 + z * (1 - np.tanh(u) ** 2) / 2 * du


WITH_SLOPE = {
    "relu": lambda z: (np.maximum(z, 0), (z > 0).astype(float)),
    "gelu": lambda z: (
        z * (1 + erf(z / math.sqrt(2))) / 2,
        (1 + erf(z / math.sqrt(2))) / 2 + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": tanh_gelu,
    "gelu_quick": lambda z: (z * sigmoid(1.702 * z), sigmoid(1.702 * z) * (1 + 1.702 * z * (1 - sigmoid(1.702 * z)))),
}


def test_every_activation_has_a_closed_form_here():
    assert {*WITH_SLOPE, "swiglu"} == ACTIVATIONS.keys()


@pytest.mark.parametrize("activation", WITH_SLOPE)
def test_feed_forward_has_the_tutorials_value_and_its_gradients_set_right(activation):
    """The tutorial adds W₂ᵀ · ∂L/∂O to ∂L/∂X; W₂ᵀ · ∂L/∂O is ∂L/∂H instead."""
    layer = filled(FeedForward(4, 6, activation))
    p, x = arrays(layer), random(10, 4)
    y, gy, found = pulled(layer, x.reshape(2, 5, 4))
    h, slope = WITH_SLOPE[activation](x @ p["fc1.weight"].T + p["fc1.bias"])
    np.testing.assert_allclose(y.reshape(10, 4), h @ p["fc2.weight"].T + p["fc2.bias"], **EXACT)
    gy = gy.reshape(10, 4)
    gz = (gy @ p["fc2.weight"]) * slope  # ∂L/∂H ⊙ act′
    expected = {
        "x": (gz @ p["fc1.weight"]).reshape(2, 5, 4),
        "fc1.weight": gz.T @ x,
        "fc1.bias": gz.sum(axis=0),
        "fc2.weight": gy.T @ h,
        "fc2.bias": gy.sum(axis=0),
    }
    assert_equal_by_name(found, expected)


def test_swiglu_gates_one_half_of_the_hidden_layer_by_the_other():
    layer = filled(FeedForward(4, 6, "swiglu"))
    p, x = arrays(layer), random(10, 4)
    y, gy, found = pulled(layer, x)
    a, b = np.split(x @ p["fc1.weight"].T + p["fc1.bias"], 2, axis=1)
    assert a.shape == b.shape == (10, 6)
    s = sigmoid(a)
    h = a * s * b
    np.testing.assert_allclose(y, h @ p["fc2.weight"].T + p["fc2.bias"], **EXACT)
    gh = gy @ p["fc2.weight"]
    gz = np.concatenate([gh * b * (s + a * s * (1 - s)), gh * a * s], axis=1)
    expected = {
        "x": gz @ p["fc1.weight"],
        "fc1.weight": gz.T @ x,
        "fc1.bias": gz.sum(axis=0),
        "fc2.weight": gy.T @ h,
        "fc2.bias": gy.sum(axis=0),
    }
    assert_equal_by_name(found, expected)


def test_pre_logits_are_the_tanh_of_a_linear_layer():
    layer = filled(PreLogits(4, 3))
    p, x = arrays(layer), random(5, 4)
    y, gy, found = pulled(layer, x)
    np.testing.assert_allclose(y, np.tanh(x @ p["weight"].T + p["bias"]), **EXACT)
    gz = gy * (1 - y**2)
    assert_equal_by_name(found, {"x": gz @ p["weight"], "weight": gz.T @ x, "bias": gz.sum(axis=0)})


def test_relu_has_slope_zero_at_zero():
    layer = filled(FeedForward(2, 3, "relu"))
    layer.fc1.bias.data[...] = 0
    _, _, found = pulled(layer, np.zeros((1, 2)))
    np.testing.assert_array_equal(found["x"], 0)
    np.testing.assert_array_equal(found["fc1.bias"], 0)


def test_an_unknown_activation_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'swish': use one of relu, gelu, gelu_tanh, gelu_quick"):
        FeedForward(4, 8, "swish")


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_an_encoder_layer_adds_each_branch_of_the_norm_to_what_it_got(layer_scale):
    layer = filled(EncoderLayer(8, 2, 12, layer_scale=layer_scale))
    p, x = arrays(layer), random(3, 5, 8)

    def norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        return normed * p[f"{name}.weight"] + p[f"{name}.bias"]

    def part(name):
        return {key.removeprefix(f"{name}."): value for key, value in p.items() if key.startswith(f"{name}.")}

    attn, mlp = part("attn"), part("mlp")
    u = np.stack([head_by_head(attn, sample, sample, 2)[0] for sample in norm(x, "norm1")])
    middle = x + u * p.get("ls1.gamma", 1)
    hidden = WITH_SLOPE["gelu"](norm(middle, "norm2") @ mlp["fc1.weight"].T + mlp["fc1.bias"])[0]
    expected = middle + (hidden @ mlp["fc2.weight"].T + mlp["fc2.bias"]) * p.get("ls2.gamma", 1)
    np.testing.assert_allclose(layer(tv.tensor(x)).numpy(), expected, **EXACT)


def test_an_encoder_layer_whose_branches_are_zero_is_the_identity_in_value_and_gradient():
    layer = filled(EncoderLayer(8, 2, 12))
    for p in (layer.attn.proj.weight, layer.attn.proj.bias, layer.mlp.fc2.weight, layer.mlp.fc2.bias):
        p.data[...] = 0
    x = random(3, 5, 8)
    y, gy, found = pulled(layer, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(found["x"], gy)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_an_encoder_layer_of_the_first_tokens_gives_what_it_gives_for_them_among_all(layer_scale):
    layer, x = filled(EncoderLayer(8, 2, 12, layer_scale=layer_scale)), tv.tensor(random(3, 5, 8))
    whole = layer(x).numpy()
    for first in (1, 2, 5):
        np.testing.assert_allclose(layer(x, first=first).numpy(), whole[:, :first], **EXACT)
    terms = layer(x * 0.25, x * 0.75, summed=False, first=2)
    assert [term.shape for term in terms] == [(3, 2, 8)] * 2
    np.testing.assert_allclose((terms[0] + terms[1]).numpy(), whole[:, :2], **EXACT)


def test_layer_norm_and_layer_scale_are_what_their_formulas_say():
    x = random(3, 5, 8)
    norm, scale = filled(LayerNorm(8, eps=0.1)), filled(LayerScale(8, 0.5))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(norm(tv.tensor(x)).numpy(), normed * norm.weight.data + norm.bias.data, **EXACT)
    y, gy, found = pulled(scale, x)
    np.testing.assert_allclose(y, x * scale.gamma.data, **EXACT)
    assert_equal_by_name(found, {"x": gy * scale.gamma.data, "gamma": (gy * x).sum(axis=(0, 1))})


@pytest.mark.parametrize("bias", [True, False])
def test_linear_multiplies_rows_by_the_transposed_weight(bias):
    layer = filled(Linear(4, 3, bias=bias))
    x = random(2, 5, 4)
    y, gy, found = pulled(layer, x)
    np.testing.assert_allclose(y, x @ layer.weight.data.T + (layer.bias.data if bias else 0), **EXACT)
    expected = {"x": gy @ layer.weight.data, "weight": gy.reshape(-1, 3).T @ x.reshape(-1, 4)}
    assert_equal_by_name(found, {**expected, **({"bias": gy.sum(axis=(0, 1))} if bias else {})})


# ---------------------------------------------------------------------------------------------------- chance


def kept(p, *shape):
    """The factors of the generator's next choice of what to drop."""
    return (generator().random(shape, np.float32) >= p) / (1 - p)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", [Dropout, DropPath])
def test_in_evaluation_and_at_probability_zero_nothing_is_dropped(kind, p):
    x = tv.tensor(random(4, 3))
    assert kind(p).eval()(x) is x
    assert (kind(p).train()(x) is x) == (p == 0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", [Dropout, DropPath])
def test_dropping_keeps_the_expectation_and_the_promised_share(kind, p):
    tv.seed(4)
    n = 40_000
    y = kind(p)(tv.tensor(np.ones((n, 1)))).numpy()
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - p)])
    assert abs(y.mean() - 1) < 4 * math.sqrt(p / (1 - p) / n)  # four standard deviations
    assert abs((y == 0).mean() - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_drop_path_drops_whole_samples_and_dropout_single_elements():
    x = 1 + np.abs(random(50, 4, 3))
    tv.seed(5)
    ratios = DropPath(0.4)(tv.tensor(x)).numpy() / x
    assert set(ratios[:, 0, 0].round(12)) == {0, round(1 / 0.6, 12)}
    np.testing.assert_allclose(ratios, np.broadcast_to(ratios[:, :1, :1], x.shape))
    dropped = Dropout(0.4)(tv.tensor(x)).numpy() == 0
    assert (dropped != dropped[:, :1, :1]).any(axis=(1, 2)).mean() > 0.9


@pytest.mark.parametrize("kind", [Dropout, DropPath])
def test_the_same_seed_drops_the_same_and_the_gradient_goes_where_the_value_went(kind):
    layer, x = kind(0.5), 1 + np.abs(random(40, 3))
    masks = []
    for seed in (6, 6, 7):
        tv.seed(seed)
        y, gy, found = pulled(layer, x)
        np.testing.assert_allclose(found["x"], gy * (y / x), **EXACT)
        masks.append(y != 0)
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def test_attention_drops_its_output_and_feed_forward_its_hidden_layer_and_its_output():
    x = random(3, 5, 8)
    attention, feed_forward = filled(MultiHeadSelfAttention(8, 2, dropout=0.5)), filled(FeedForward(8, 6, dropout=0.5))
    tv.seed(3)
    dropped = [layer(tv.tensor(x)).numpy() for layer in (attention, feed_forward)]
    tv.seed(3)
    np.testing.assert_allclose(dropped[0], attention.eval()(tv.tensor(x)).numpy() * kept(0.5, 3, 5, 8), **EXACT)
    p = arrays(feed_forward)
    hidden = WITH_SLOPE["gelu"](x @ p["fc1.weight"].T + p["fc1.bias"])[0] * kept(0.5, 3, 5, 6)
    expected = (hidden @ p["fc2.weight"].T + p["fc2.bias"]) * kept(0.5, 3, 5, 8)
    np.testing.assert_allclose(dropped[1], expected, **EXACT)


def test_an_encoder_layer_drops_the_path_of_each_branch_by_itself_and_never_the_residual():
    layer, x = filled(EncoderLayer(8, 2, 12, drop_path=0.5)), random(20, 5, 8)
    tv.seed(3)
    y = layer(tv.tensor(x)).numpy()
    tv.seed(3)
    middle = x + layer.attn(layer.norm1(tv.tensor(x))).numpy() * kept(0.5, 20, 1, 1)
    expected = middle + layer.mlp(layer.norm2(tv.tensor(middle))).numpy() * kept(0.5, 20, 1, 1)
    np.testing.assert_allclose(y, expected, **EXACT)
    assert (y == x).all(axis=(1, 2)).any()  # a sample that skipped both


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("kind", [Dropout, DropPath])
def test_a_probability_out_of_range_is_an_error(kind, p):
    with pytest.raises(ValueError, match=r"probability .* \[0, 1\)"):
        kind(p)(tv.tensor(np.ones((2, 2))))


# ------------------------------------------------------------------------------------------------------ the head


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_fresh_head_finds_every_class_equally_likely(classes):
    head = ClassificationHead(8, classes)
    x = tv.tensor(random(4, 8))
    np.testing.assert_allclose(head.probabilities(x).numpy(), 1 / classes)
    loss = tv.ops.cross_entropy(head(x), np.arange(4) % classes)
    assert loss.item() == pytest.approx(math.log(classes), rel=1e-6)


def test_the_heads_gradients_with_cross_entropy_are_those_of_p_minus_y():
    head, labels = filled(ClassificationHead(8, 3)), np.array([2, 0, 0, 1])
    x = tv.tensor(random(4, 8), requires_grad=True)
    tv.ops.cross_entropy(head(x), labels).backward()
    p = softmax(x.data @ head.weight.data.T + head.bias.data)
    np.testing.assert_allclose(head.probabilities(x).detach().numpy(), p, **EXACT)
    g = (p - np.eye(3)[labels]) / 4
    found = {"x": x.grad.numpy(), "weight": head.weight.grad.numpy(), "bias": head.bias.grad.numpy()}
    assert_equal_by_name(found, {"x": g @ head.weight.data, "weight": g.T @ x.data, "bias": g.sum(axis=0)})


# ----------------------------------------------------------------------------- every layer, by finite differences


def seeded(module):
    """The layer, with the same choice of what to drop at each call."""

    def forward(x):
        tv.seed(8)
        return module(x)

    return module, forward


ENCODER = {"dropout": 0.2, "attention_dropout": 0.2, "drop_path": 0.5, "layer_scale": 0.1}
LAYERS = {
    "linear": (lambda: Linear(4, 3), (2, 3, 4)),
    "linear without bias": (lambda: Linear(4, 3, bias=False), (2, 4)),
    "layer norm": (lambda: LayerNorm(5), (2, 3, 5)),
    "layer scale": (lambda: LayerScale(5, 0.1), (2, 3, 5)),
    "dropout": (lambda: Dropout(0.5), (4, 5)),
    "drop path": (lambda: DropPath(0.5), (4, 5)),
    "patch embedding": (lambda: PatchEmbedding(2, 3, 4), (2, 3, 4, 6)),
    "attention": (lambda: MultiHeadSelfAttention(6, 2), (2, 4, 6)),
    "attention without bias": (lambda: MultiHeadSelfAttention(6, 3, qkv_bias=False), (2, 4, 6)),
    "attention with dropout": (lambda: MultiHeadSelfAttention(6, 2, dropout=0.3, attention_dropout=0.3), (2, 4, 6)),
    **{f"feed-forward, {name}": (lambda name=name: FeedForward(4, 6, name), (2, 3, 4)) for name in ACTIVATIONS},
    "encoder layer": (lambda: EncoderLayer(6, 2, 8), (2, 3, 6)),
    "encoder layer with everything": (lambda: EncoderLayer(6, 2, 8, activation="relu", **ENCODER), (3, 3, 6)),
    "head": (lambda: ClassificationHead(6, 3), (2, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_inputs_and_parameters_are_the_slopes(name):
    make, shape = LAYERS[name]
    layer, forward = seeded(filled(make()))
    x = tv.tensor(random(*shape, seed=9), requires_grad=True)
    tv.gradcheck(lambda x, *parameters: forward(x), [x, *layer.parameters()])


@pytest.mark.parametrize("grid", [(2, 3), (3, 2), (4, 5)])
def test_gradients_of_positions_are_the_slopes_also_through_resampling(grid):
    layer = filled(PositionalEncoding((2, 3), 4, prefix=1))
    x = tv.tensor(random(2, 1 + grid[0] * grid[1], 4), requires_grad=True)
    tv.gradcheck(lambda x, table: layer(x, grid), [x, layer.table])


# ------------------------------------------------------------------------------------------------ initial weights


@pytest.mark.parametrize(
    ("make", "name", "std"),
    [
        (lambda rng: Linear(64, 128, rng=rng), "weight", math.sqrt(2 / 192)),
        (lambda rng: PatchEmbedding(8, 3, 64, rng), "proj.weight", (3 * 64) ** -0.5),
        (lambda rng: PositionalEncoding((16, 16), 64, rng=rng), "", 0.02),
    ],
)
def test_initial_weights_have_the_promised_spread_and_come_from_the_generator_given(make, name, std):
    states = [make(np.random.default_rng(seed)).state_dict() for seed in (0, 0, 1)]
    weight = states[0][name]
    assert weight.dtype == np.float32
    assert abs(weight.mean()) < 5 * std / math.sqrt(weight.size)
    assert weight.std() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.size))
    np.testing.assert_array_equal(weight, states[1][name])
    assert (weight != states[2][name]).all()


def test_xavier_stays_within_its_bound_and_nearly_reaches_it():
    weight = np.abs(xavier_uniform((30, 70), None))
    assert 0.99 * math.sqrt(6 / 100) < weight.max() <= np.float32(math.sqrt(6 / 100))


def test_without_a_generator_weights_come_from_the_threads_own():
    tv.seed(10)
    first = normal((3, 4), 0.5, None)
    np.testing.assert_array_equal(first, normal((3, 4), 0.5, np.random.default_rng(10)))


def test_biases_start_at_zero_norms_at_one_and_layer_scale_where_told():
    state = EncoderLayer(8, 2, 12, layer_scale=0.1).state_dict()
    expected = {"norm1.weight": 1, "norm2.weight": 1, "ls1.gamma": np.float32(0.1), "ls2.gamma": np.float32(0.1)}
    expected |= {name: 0 for name in state if name.endswith("bias")}
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert len(expected) == 10


# ---------------------------------------------------------------------------------------------------------- Module


def encoder():
    return EncoderLayer(8, 2, 12, dropout=0.1, layer_scale=0.1, rng=np.random.default_rng(11))


NAMES = [
    "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias", "ls1.gamma",
    "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "ls2.gamma",
]  # fmt: skip


class Pair(Module):
    """A list of layers, beside a parameter of its own and things that are neither."""

    def __init__(self):
        self.layers = [Linear(2, 3), "no layer", Linear(3, 1, bias=False)]
        self.scale = Parameter(np.ones(1, np.float32))
        self.note = {"a": 1}


def test_parameters_are_named_by_the_attributes_that_hold_them():
    assert [name for name, _ in encoder().named_parameters()] == NAMES
    expected = ["scale", "layers.0.weight", "layers.0.bias", "layers.2.weight"]
    assert [name for name, _ in Pair().named_parameters()] == expected
    assert Pair().num_parameters == 1 + 6 + 3 + 3


def test_only_weights_of_two_or_more_axes_are_decayed():
    decayed = {name for name, p in encoder().named_parameters() if p.decay}
    assert decayed == {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    assert not PositionalEncoding((2, 2), 4).table.decay
    assert PatchEmbedding(2, 3, 4).proj.weight.decay


def test_train_and_eval_reach_every_layer_within_and_return_the_layer():
    layer = encoder()
    assert len(list(layer.modules())) == 15
    for switch, mode in ((layer.eval, False), (layer.train, True), (lambda: layer.train(False), False)):
        assert switch() is layer
        assert {module.training for module in layer.modules()} == {mode}


def test_a_state_dict_is_a_copy():
    layer = encoder()
    state = layer.state_dict()
    before = {name: value.copy() for name, value in state.items()}
    for p in layer.parameters():
        p.data += 1
    assert_equal_by_name(state, before)
    for value in state.values():
        value -= 7
    assert_equal_by_name(layer.state_dict(), {name: value + 1 for name, value in before.items()})


def test_a_state_dict_loads_into_another_layer_in_that_layers_dtype():
    source, target = encoder(), filled(encoder())
    state = source.state_dict()
    target.load_state_dict(state)
    assert {p.dtype for p in target.parameters()} == {np.dtype(np.float64)}
    assert_equal_by_name(target.state_dict(), state)
    state["norm1.weight"] += 1
    np.testing.assert_array_equal(target.norm1.weight.data, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mlp.fc1.bias"), r"missing mlp\.fc1\.bias"),
        (lambda s: s.update(extra=np.zeros(3)), "unexpected extra"),
        (lambda s: s.update({"norm1.bias": np.zeros(9)}), r"norm1\.bias has shape \(9,\) instead of \(8,\)"),
        (lambda s: s.update({"attn.proj.weight": np.zeros(())}), r"proj\.weight has shape \(\) instead of \(8, 8\)"),
        (lambda s: (s.pop("ls1.gamma"), s.update(x=1, ls2=2)), "missing ls1.gamma; unexpected x; unexpected ls2"),
        (lambda s: s.clear(), "EncoderLayer: missing norm1.weight; .*; and 9 more$"),
    ],
)
def test_weights_that_do_not_fit_are_one_error_that_changes_nothing(change, message):
    layer = encoder()
    before = layer.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict(state)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_loading_weights_is_noticed_by_a_sweep_that_needs_the_old_ones():
    layer = Linear(3, 2)
    y = layer(tv.tensor(np.ones((1, 3), np.float32), requires_grad=True)).sum()
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(tv.TapeError, match="overwritten"):
        y.backward()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_moving_to_a_dtype_takes_every_tensor_along_and_drops_old_gradients(dtype):
    layer = Pair()
    layer.positions = PositionalEncoding((1, 2), 4, kind="sincos")
    before = layer.state_dict()
    layer.layers[0](tv.tensor(np.ones((1, 2), np.float32))).sum().backward()
    assert layer.to(dtype=dtype) is layer
    assert {p.dtype for p in [*layer.parameters(), layer.positions.table]} == {np.dtype(dtype)}
    assert all(p.grad is None and p.requires_grad and p.is_leaf for p in layer.parameters())
    assert [p.decay for p in layer.parameters()] == [False, True, False, True]
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name].astype(dtype))


def test_moving_to_an_unknown_device_moves_nothing():
    layer = Linear(2, 2)
    data = layer.weight.data
    with pytest.raises(tv.BackendError, match="'tpu'"):
        layer.to("tpu", np.float64)
    assert layer.weight.data is data


def test_moving_to_integers_is_an_error_that_moves_nothing():
    layer = Linear(2, 2)
    with pytest.raises(TypeError, match="floating-point"):
        layer.to(dtype=np.int64)
    assert {p.dtype for p in layer.parameters()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("frozen", [False, True])
def test_zero_grad_forgets_all_gradients_and_passes_over_frozen_parameters(frozen):
    layer = Linear(2, 3)
    layer.bias.requires_grad = not frozen
    x = tv.tensor(np.ones((1, 2), np.float32))
    for _ in range(2):
        layer(x).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad.numpy(), 2)  # gathered over both
    layer.zero_grad()
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_a_layers_repr_shows_what_is_inside_and_its_shapes():
    lines = repr(encoder()).splitlines()
    assert lines[0] == "EncoderLayer("
    assert lines[-1] == ")"
    assert "  (attn): MultiHeadSelfAttention(" in lines
    assert "    (qkv): Linear(weight(24, 8), bias(24,))" in lines
    assert "  (ls2): LayerScale(gamma(8,))" in lines
    assert repr(Linear(3, 2, bias=False)) == "Linear(weight(2, 3))"


def test_a_module_without_a_forward_says_so():
    with pytest.raises(NotImplementedError, match="Pair has no forward"):
        Pair()(1)


@pytest.mark.parametrize(
    "value", [lambda: [Parameter(np.ones(1))], lambda: (Linear(1, 1),), lambda: {"a": Linear(1, 1)}]
)
def test_a_parameter_that_would_not_be_found_is_refused(value):
    with pytest.raises(TypeError, match="keep a Parameter as an attribute and layers in a list"):
        Module().hidden = value()
