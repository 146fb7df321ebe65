"""The whole ViT: against a plain NumPy ViT, finite differences to second order, timm's names, and its own errors."""

import math
from dataclasses import replace

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.engine.random import generator
from tinyvit.layers.embedding import sincos_2d
from tinyvit.training.optim import AdamW

SMALL = tv.ViTConfig(
    image_size=8, patch_size=4, channels=2, num_classes=3, dim=8, depth=2, num_heads=2, mlp_ratio=2.0
)  # 4 patches
VARIANTS = {
    "plain": {},
    "mean": {"pool": "mean"},
    "no class token": {"pool": "mean", "class_token": False},
    "registers": {"register_tokens": 2},
    "registers and mean": {"register_tokens": 3, "pool": "mean"},
    "registers without class token": {"register_tokens": 2, "pool": "mean", "class_token": False},
    "sincos": {"position": "sincos"},
    "sincos without class token": {"position": "sincos", "pool": "mean", "class_token": False},
    "relu": {"activation": "relu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "gelu_quick": {"activation": "gelu_quick"},
    "swiglu": {"activation": "swiglu"},
    "class token without a position": {"class_position": False},
    "registers, none with a position": {"class_position": False, "register_tokens": 2},
    "distilled": {"distillation_token": True},
    "distilled, with registers": {"distillation_token": True, "register_tokens": 2, "pool": "mean"},
    "norm after the mean": {"pool": "mean", "pool_norm": True, "class_token": False},
    "norm after pooling, no layers": {"pool_norm": True, "depth": 0},
    "class token and mean": {"pool": "cls_mean", "register_tokens": 1},
    "pre-logits": {"pre_logits": 5},
    "no head": {"num_classes": 0, "pool": "cls_mean", "class_position": False},
    "layer scale": {"layer_scale": 0.1},
    "no qkv bias": {"qkv_bias": False},
    "one head, large eps": {"num_heads": 1, "eps": 0.1},
    "wide image": {"image_size": (4, 12), "patch_size": 2, "channels": 1},
    "no layers": {"depth": 0},
    "everything": {"image_size": (8, 12), "register_tokens": 2, "position": "sincos", "activation": "relu",
                   "pool": "mean", "layer_scale": 0.1, "mlp_ratio": 1.5, "pool_norm": True, "pre_logits": 3,
                   "distillation_token": True},
}  # fmt: skip
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def filled(config=SMALL, dtype=np.float64, seed=1, **changes):
    """A model with random numbers in all its parameters, the head's included."""
    model = tv.ViT(replace(config, **changes)).to(dtype=dtype)
    for i, (name, p) in enumerate(model.named_parameters()):
        p.data[...] = random(*p.shape, seed=(seed, i)) * 0.4 + ("norm" in name and name.endswith("weight"))
    return model


def images_for(model, batch=3, seed=2):
    c = model.config
    return random(batch, c.channels, c.height, c.width, seed=seed)


def loss_of(model, images, labels=(2, 0, 1)):
    return tv.ops.cross_entropy(model(images), np.array(labels), label_smoothing=0.1)


# ------------------------------------------------------------------------------ the same model from raw arrays

GATES = {
    "gelu": lambda z: (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
    "gelu_quick": lambda z: 1 / (1 + np.exp(-1.702 * z)),
    "relu": lambda z: z > 0,
    "swiglu": lambda a: 1 / (1 + np.exp(-a)),
}


def reference(c, state, images):
    """Return tokens and logits of a ViT with these weights by timm's names: a loop over patches, layers and heads."""
    P, D, d_k = c.patch_size, c.dim, c.dim // c.num_heads

    def linear(x, name):
        return x @ state[f"{name}.weight"].reshape(len(state[f"{name}.weight"]), -1).T + state.get(f"{name}.bias", 0)

    def norm(x, name):
        normed = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + c.eps)
        return normed * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(x, name):
        packed, heads = linear(x, f"{name}.qkv"), []
        for h in range(c.num_heads):
            q, k, v = (packed[..., part * D + h * d_k : part * D + (h + 1) * d_k] for part in range(3))
            e = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(d_k))
            heads.append(e / e.sum(axis=-1, keepdims=True) @ v)
        return linear(np.concatenate(heads, axis=-1), f"{name}.proj")

    def before(token, x):
        return np.concatenate([np.repeat(state[token], len(x), axis=0), x], axis=1) if token in state else x

    corners = [(i, j) for i in range(0, images.shape[2], P) for j in range(0, images.shape[3], P)]
    x = np.stack([images[:, :, i : i + P, j : j + P].reshape(len(images), -1) for i, j in corners], axis=1)
    x = linear(x, "patch_embed.proj")
    named = c.class_token + c.distillation_token
    placed = named if c.class_position else 0
    if c.class_position:
        x = before("cls_token", before("dist_token", x))
    x = x + (state["pos_embed"] if c.position == "learned" else sincos_2d(c.grid, D, placed))
    x = np.concatenate([x[:, :placed], before("reg_token", x[:, placed:])], axis=1)
    if not c.class_position:
        x = before("cls_token", before("dist_token", x))
    for i in range(c.depth):
        block = f"blocks.{i}"
        x = x + attention(norm(x, f"{block}.norm1"), f"{block}.attn") * state.get(f"{block}.ls1.gamma", 1)
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        gated, gate = np.split(hidden, 2, axis=-1)[::-1] if c.activation == "swiglu" else (hidden, hidden)
        hidden = (
            gated * gate * GATES[c.activation](gate) if c.activation == "swiglu" else gated * GATES[c.activation](gate)
        )
        x = x + linear(hidden, f"{block}.mlp.fc2") * state.get(f"{block}.ls2.gamma", 1)
    x = x if c.pool_norm else norm(x, "norm")
    prefix = named + c.register_tokens
    parts = {"cls": x[:, 0], "mean": x[:, prefix:].mean(axis=1)}
    y = np.concatenate([parts[part] for part in c.pool.split("_")], axis=1)
    y = norm(y, "fc_norm") if c.pool_norm else y
    y = np.tanh(linear(y, "pre_logits")) if c.pre_logits else y
    if c.num_classes:
        y = linear(y, "head")
    return x, (y + linear(x[:, 1], "head_dist")) / 2 if c.distillation_token else y


@every_variant
def test_features_and_logits_are_those_of_a_plain_numpy_vit(changes, device):
    model = filled(**changes).to(device)
    c, images = model.config, images_for(model)
    tokens, logits = reference(c, model.state_dict(), images)
    features = model.features(images)
    assert features.shape == (3, c.class_token + c.distillation_token + c.register_tokens + c.num_patches, c.dim)
    assert features.device == device
    np.testing.assert_allclose(features.detach().numpy(), tokens, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(model(images).detach().numpy(), logits, rtol=1e-10, atol=1e-11)


def test_one_training_step_moves_every_parameter_as_adamw_says_and_lowers_the_loss(device):
    model = filled(dtype=np.float32).to(device)
    images, labels = images_for(model), np.array([2, 0, 1])
    optimizer = AdamW(model.named_parameters(), lr=1e-3, weight_decay=0.1)
    assert model.device == device
    loss = loss_of(model, images, labels)
    loss.backward()
    state, gradients = model.state_dict(), {name: p.grad.numpy() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        assert (p.device, p.grad.device) == (device, device)
        g, decay = gradients[name], 0.1 if p.decay else 0
        expected = state[name] * (1 - 1e-3 * decay) - 1e-3 * g / (np.abs(g) + 1e-8)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert {name for name, p in model.named_parameters() if p.decay} == {
        name for name in state if name.endswith("weight") and "norm" not in name
    }
    assert loss_of(model, images, labels).item() < loss.item() - 1e-3


def test_a_training_step_with_everything_that_drops_has_finite_gradients_of_the_loss(device):
    model = filled(dtype=np.float32, dropout=0.2, attention_dropout=0.2, drop_path=0.2, register_tokens=1).to(device)
    losses = []
    for seed in (3, 3, 4):
        tv.seed(seed)
        model.zero_grad()
        loss = loss_of(model, images_for(model))
        loss.backward()
        losses.append(loss.item())
        assert all(np.isfinite(p.grad.numpy()).all() for p in model.parameters())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@every_variant
def test_a_model_keeps_its_dtype_through_forward_and_gradients_on_any_grid(changes, dtype, device):
    model = filled(dtype=dtype, **changes).to(device)
    c = model.config
    for height, width in {(c.height, c.width), (2 * c.height, c.width)}:
        model.zero_grad()
        logits = model(random(3, c.channels, height, width))  # float64, taken to the model's dtype
        loss = tv.ops.cross_entropy(logits, np.array([2, 0, 1]), label_smoothing=0.1)
        loss.backward()
        found = {"logits": logits, "loss": loss, **{name: p.grad for name, p in model.named_parameters()}}
        assert {name: x.dtype for name, x in found.items()} == dict.fromkeys(found, np.dtype(dtype))
        assert all(np.isfinite(x.detach().numpy()).all() for x in found.values())


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float16, 2e-2), (np.float32, 1e-5)])
def test_a_narrow_model_computes_what_the_wide_one_does_to_its_precision(dtype, rtol):
    model = filled(dtype=dtype)
    images = images_for(model)
    wide = {name: value.astype(np.float64) for name, value in model.state_dict().items()}
    _, expected = reference(model.config, wide, images.astype(dtype).astype(np.float64))
    np.testing.assert_allclose(model(images).detach().numpy(), expected, rtol=rtol, atol=rtol)


# ----------------------------------------------------------------- derivatives, by finite differences

FOUR = pytest.mark.parametrize(
    "changes",
    [{"pool": pool, "activation": activation} for pool in ("cls", "mean") for activation in ("gelu", "relu")],
    ids=lambda changes: "-".join(changes.values()),
)


def directions(model, n):
    """Random directions of unit length in the space of all parameters."""
    for seed in range(n):
        v = [random(*p.shape, seed=(seed, i)) for i, p in enumerate(model.parameters())]
        length = math.sqrt(sum((part**2).sum() for part in v))
        yield [part / length for part in v]


def difference(model, v, f, h):
    """Return df/dt along v at t = 0 from four values: Richardson's extrapolation of central differences, O(h⁴)."""
    start = [p.data.copy() for p in model.parameters()]

    def at(t):
        for p, p0, part in zip(model.parameters(), start, v, strict=True):
            p.data[...] = p0 + t * part
        return f()

    wide, near = ((at(t) - at(-t)) / (2 * t) for t in (h, h / 2))
    at(0)
    return (4 * near - wide) / 3


def flat(tensors):
    return np.concatenate([t.numpy().ravel() for t in tensors])


@FOUR
def test_the_gradient_is_the_slope_along_random_directions_of_all_parameters(changes):
    model = filled(register_tokens=1, layer_scale=0.5, **changes)
    images, parameters = images_for(model), list(model.parameters())
    gradient = flat(tv.grad(loss_of(model, images), parameters))
    for v in directions(model, 10):
        slope = difference(model, v, lambda: loss_of(model, images).item(), h=1e-3)
        along = gradient @ np.concatenate([part.ravel() for part in v])
        assert along == pytest.approx(slope, rel=1e-9, abs=1e-9 * np.linalg.norm(gradient) / math.sqrt(gradient.size))


@FOUR
def test_a_hessian_vector_product_is_the_slope_of_the_gradient(changes):
    model = filled(register_tokens=1, layer_scale=0.5, **changes)
    images, parameters = images_for(model), list(model.parameters())
    for v in directions(model, 2):
        gradient = tv.grad(loss_of(model, images), parameters, create_graph=True)
        along = sum((g * part).sum() for g, part in zip(gradient, v, strict=True))
        product = flat(tv.grad(along, parameters))
        slope = difference(model, v, lambda: flat(tv.grad(loss_of(model, images), parameters)), h=1e-3)
        assert np.abs(product - slope).max() < 1e-9 * np.abs(slope).max()


def test_the_hessian_is_symmetric():
    model = filled()
    images, parameters = images_for(model), list(model.parameters())
    u, v = directions(model, 2)

    def curvature(left, right):
        gradient = tv.grad(loss_of(model, images), parameters, create_graph=True)
        along = sum((g * part).sum() for g, part in zip(gradient, right, strict=True))
        return sum((g.numpy() * part).sum() for g, part in zip(tv.grad(along, parameters), left, strict=True))

    assert curvature(u, v) == pytest.approx(curvature(v, u), rel=1e-10)


@pytest.mark.parametrize("height", [8, 12])
def test_the_gradient_of_the_images_is_the_slope_on_the_models_grid_and_on_another(height):
    model = filled()
    tv.gradcheck(model, [tv.tensor(random(1, 2, height, 8), requires_grad=True)])


# --------------------------------------------------------------------------- what a ViT is, whatever its weights


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_without_positions_the_order_of_the_patches_does_not_matter_and_with_them_it_does(pool):
    model = filled(image_size=(8, 12), pool=pool, register_tokens=1)
    images = images_for(model)
    grid = images.reshape(3, 2, 2, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(3, 6, 2, 4, 4)
    shuffled = grid[:, [3, 0, 5, 1, 4, 2]].reshape(3, 2, 3, 2, 4, 4).transpose(0, 3, 1, 4, 2, 5).reshape(images.shape)
    with tv.no_grad():
        assert np.abs(model(images).numpy() - model(shuffled).numpy()).max() > 1e-3
        model.pos_embed.table[...] = 0
        np.testing.assert_allclose(model(shuffled).numpy(), model(images).numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_each_image_of_a_batch_is_seen_alone(batch):
    model = filled()
    images = images_for(model, batch)
    logits = model(images).detach().numpy()
    assert logits.shape == (batch, 3)
    for image, row in zip(images, logits, strict=True):
        np.testing.assert_allclose(model(image[None]).detach().numpy()[0], row, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("prefix", [{}, {"register_tokens": 2}, {"class_token": False, "pool": "mean"}])
@pytest.mark.parametrize("size", [(8, 16), (16, 8), (4, 4), (20, 12)])
def test_learned_positions_are_resampled_to_an_image_of_another_size(size, prefix):
    model = filled(**prefix)
    resampled = filled(image_size=size, **prefix)
    table = model.pos_embed.resampled(resampled.config.grid).detach().numpy()
    resampled.load_state_dict({**model.state_dict(), "pos_embed": table})
    images = random(2, 2, *size)
    np.testing.assert_allclose(model(images).detach().numpy(), resampled(images).detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("size", [(8, 16), (16, 8), (4, 4), (20, 12)])
def test_sincos_positions_of_an_image_of_another_size_are_those_of_a_model_for_that_size(size):
    model, other = (filled(image_size=image_size, position="sincos") for image_size in (8, size))
    other.load_state_dict(model.state_dict())
    images = random(2, 2, *size)
    np.testing.assert_array_equal(model(images).detach().numpy(), other(images).detach().numpy())


def test_the_head_reads_the_class_token_or_the_mean_of_the_patches_and_never_the_registers():
    tokens = tv.tensor(random(2, 1 + 2 + 4, 8))
    cls, mean = (filled(register_tokens=2, pool=pool) for pool in ("cls", "mean"))
    np.testing.assert_array_equal(cls.pooled(tokens).numpy(), tokens.data[:, 0])
    np.testing.assert_allclose(mean.pooled(tokens).numpy(), sum(tokens.data[:, i] for i in range(3, 7)) / 4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 1},
        {"distillation_token": True, "register_tokens": 1},
        {"pool_norm": True, "layer_scale": 0.1},
        {"checkpoint": True, "drop_path": 0.5},
        {"attention_dropout": 0.3},
    ],
)
def test_tokens_that_the_head_does_not_read_are_skipped_and_nothing_else_changes(changes, device):
    model = filled(**changes).to(device)
    images, gy = images_for(model), tv.tensor(random(3, 3, seed=5), device=device)

    def logits_by_all_tokens():
        tokens = model.features(images)
        assert tokens.shape[1] > model.config.num_class_tokens
        logits = model.head(model.pooled(tokens))
        return (logits + model.head_dist(tokens[:, 1])) * 0.5 if model.head_dist else logits

    found = []
    for logits_of in (lambda: model(images), logits_by_all_tokens):
        tv.seed(7)
        model.zero_grad()
        logits = logits_of()
        (logits * gy).sum().backward()
        found.append([logits.detach().numpy(), *(p.grad.numpy() for p in model.parameters())])
    for skipped, whole in zip(*found, strict=True):
        np.testing.assert_allclose(skipped, whole, rtol=1e-11, atol=1e-12)


def test_features_are_normed_tokens():
    model = filled()
    model.norm.weight.data[...], model.norm.bias.data[...] = 1, 0
    tokens = model.features(images_for(model)).detach().numpy()
    np.testing.assert_allclose(tokens.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(tokens.std(axis=-1), 1, rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_drop_path_grows_in_even_steps_from_layer_to_layer(depth):
    model = tv.ViT(replace(SMALL, depth=depth, drop_path=0.3))
    assert [layer.drop_path.p for layer in model.blocks] == pytest.approx(np.linspace(0, 0.3, depth))


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "drop_path"])
def test_in_evaluation_nothing_is_dropped_and_in_training_each_kind_drops(kind):
    model, plain = filled(**{kind: 0.5}), filled()
    images = images_for(model, 8)
    with tv.no_grad():
        expected = plain(images).numpy()
        assert any((model.train()(images).numpy() != expected).any() for _ in range(5))
        np.testing.assert_array_equal(model.eval()(images).numpy(), expected)


def test_dropout_acts_on_the_embeddings_too():
    model = filled(dropout=0.5)
    images = images_for(model)
    with tv.no_grad():
        factors = model.embed(images).numpy() / model.eval().embed(images).numpy()
    np.testing.assert_allclose(np.unique(factors.round(12)), [0, 2])


def test_a_fresh_model_finds_every_class_equally_likely():
    model = tv.ViT(SMALL)
    images = images_for(model).astype(np.float32)
    np.testing.assert_array_equal(model(images).numpy(), 0)
    assert loss_of(model, images).item() == pytest.approx(math.log(3), rel=1e-6)


def test_initial_weights_come_from_the_generator_given_and_from_no_other():
    tv.seed(5)
    before = generator().bit_generator.state
    first, second, third = (tv.ViT(SMALL, np.random.default_rng(seed)).state_dict() for seed in (0, 0, 1))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
        assert (value == third[name]).all() == (name.endswith("bias") or "norm" in name or name[:4] in ("cls_", "head"))
    assert generator().bit_generator.state == before
    tv.seed(0)
    np.testing.assert_array_equal(tv.ViT(SMALL).state_dict()["pos_embed"], first["pos_embed"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_with_head_keeps_all_weights_but_a_fresh_heads_and_shares_no_memory(dtype):
    model = filled(dtype=dtype)
    before = model.state_dict()
    other = model.with_head(5)
    assert other.config == replace(SMALL, num_classes=5)
    state = other.state_dict()
    assert state["head.weight"].shape == (5, 8)
    for name, value in state.items():
        np.testing.assert_array_equal(value, 0 if name.startswith("head.") else before[name], err_msg=name)
        assert value.dtype == dtype
    for p in other.parameters():
        p.data += 1
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


# ---------------------------------------------------------------------------------- names, shapes and sizes

TINY_BLOCK = {
    "norm1.weight": (192,),
    "norm1.bias": (192,),
    "attn.qkv.weight": (576, 192),
    "attn.qkv.bias": (576,),
    "attn.proj.weight": (192, 192),
    "attn.proj.bias": (192,),
    "norm2.weight": (192,),
    "norm2.bias": (192,),
    "mlp.fc1.weight": (768, 192),
    "mlp.fc1.bias": (768,),
    "mlp.fc2.weight": (192, 768),
    "mlp.fc2.bias": (192,),
}
TINY = {
    "cls_token": (1, 1, 192),
    "pos_embed": (1, 197, 192),
    "patch_embed.proj.weight": (192, 3, 16, 16),
    "patch_embed.proj.bias": (192,),
    **{f"blocks.{i}.{name}": shape for i in range(12) for name, shape in TINY_BLOCK.items()},
    "norm.weight": (192,),
    "norm.bias": (192,),
    "head.weight": (1000, 192),
    "head.bias": (1000,),
}


class Hollow(np.ndarray):
    """Weights of any shape without memory: one number, seen at every place."""

    def astype(self, *_, **__):
        return self

    def __mul__(self, _):
        return self


class HollowGenerator:
    """Stands in for NumPy's generator where only the shapes matter."""

    def standard_normal(self, size, dtype=None):
        return np.broadcast_to(np.float32(0), size).view(Hollow)

    def uniform(self, low, high, size):
        return self.standard_normal(size)


def shapes(name, **changes):
    return {key: p.shape for key, p in tv.ViT.named(name, HollowGenerator(), **changes).named_parameters()}


def test_parameters_have_timms_names_and_shapes():
    assert shapes("vit_tiny_patch16_224") == TINY
    state = tv.ViT.named("vit_tiny_patch16_224", num_classes=7, depth=1).state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: (7, *shape[1:]) if name.startswith("head") else shape
        for name, shape in TINY.items()
        if not name.startswith("blocks.") or name.startswith("blocks.0.")
    }
    assert {value.dtype for value in state.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("changes", "added", "removed"),
    [
        ({"layer_scale": 1e-5}, {f"blocks.{i}.ls{k}.gamma": (192,) for i in range(12) for k in (1, 2)}, {}),
        ({"register_tokens": 4}, {"reg_token": (1, 4, 192)}, {}),
        ({"qkv_bias": False}, {}, {f"blocks.{i}.attn.qkv.bias" for i in range(12)}),
        ({"position": "sincos"}, {}, {"pos_embed"}),
        ({"pool": "mean", "class_token": False}, {"pos_embed": (1, 196, 192)}, {"cls_token"}),
    ],
)
def test_options_add_and_remove_their_own_names_only(changes, added, removed):
    expected = {name: shape for name, shape in TINY.items() if name not in removed} | added
    assert shapes("vit_tiny_patch16_224", **changes) == expected


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_large_patch16_224", 304_326_632),
        ("vit_huge_patch14_224", 632_045_800),
    ],
)
def test_known_models_have_the_known_number_of_parameters(name, count):
    assert tv.ViT.named(name, HollowGenerator()).num_parameters == count


@pytest.mark.parametrize("changes", [{}, {"num_classes": 10, "drop_path": 0.1}, {"patch_size": 8, "image_size": 64}])
def test_a_named_config_is_the_size_with_some_fields_changed(changes):
    config = tv.ViTConfig.named("vit_base_patch32_384", **changes)
    assert config == tv.ViTConfig(
        **{"image_size": 384, "patch_size": 32, "dim": 768, "depth": 12, "num_heads": 12, **changes}
    )


def test_a_config_works_out_grid_tokens_and_hidden_width_and_takes_tomls_lists():
    config = tv.ViTConfig(image_size=[32, 48], patch_size=8, dim=10, num_heads=5, mlp_ratio=2.5, register_tokens=3)
    assert config == replace(config, image_size=(32, 48))
    assert (config.height, config.width, config.grid, config.num_patches) == (32, 48, (4, 6), 24)
    assert (config.num_prefix_tokens, config.mlp_hidden) == (4, 25)
    assert replace(config, pool="mean", class_token=False).num_prefix_tokens == 3
    assert len({config, replace(config, image_size=(32, 48)), replace(config, depth=1)}) == 2


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "image_size 8×8 .* patch_size 3"),
        ({"image_size": (8, 6)}, "image_size 8×6 .* patch_size 4"),
        ({"image_size": [6, 8]}, "image_size 6×8 .* patch_size 4"),
        ({"image_size": (8, 8, 8)}, "image_size"),
        ({"image_size": (8,)}, "image_size"),
        ({"num_heads": 3}, "num_heads 3 .* dim 8"),
        ({"activation": "swish"}, "activation 'swish' .* relu, gelu, gelu_tanh, gelu_quick"),
        ({"pool": "max"}, "pool 'max' .* cls, mean"),
        ({"position": "rotary"}, "position 'rotary' .* learned, sincos"),
        ({"class_token": False}, "pool 'cls' .* class_token"),
        ({"position": "sincos", "dim": 6}, "'sincos' .* multiple of 4, not 6"),
        *[({name: 0}, f"{name} is 0.* at least 1") for name in
          ("patch_size", "channels", "dim", "num_heads", "image_size")],
        ({"image_size": (8, 0)}, "image_size is 0"),
        ({"num_heads": -2}, "num_heads is -2"),
        *[({name: -1}, f"{name} is -1; it cannot be negative") for name in
          ("depth", "register_tokens", "num_classes", "pre_logits")],
        ({"resampling": "cubic"}, "resampling 'cubic' .* bilinear, .* bicubic_offset"),
        ({"pool": "cls_mean", "class_token": False}, "pool 'cls_mean' .* class_token"),
        ({"pool": "mean", "class_token": False, "distillation_token": True}, "distillation_token needs class_token"),
        ({"pool": "cls_mean", "pool_norm": True}, "pool_norm goes with pool 'cls' or 'mean'"),
        *[({name: p}, rf"{name} {p} .* \[0, 1\)") for name in ("dropout", "attention_dropout", "drop_path")
          for p in (-0.1, 1.0, math.nan)],
        *[({"mlp_ratio": ratio}, "mlp_ratio") for ratio in (0.0, -1.0, 0.1, math.nan)],
        *[({"eps": eps}, "eps") for eps in (-1e-6, math.nan)],
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_makes_no_vit_is_one_sentence_that_names_the_field(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        replace(SMALL, **changes)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    "name", ["", "vit", "vit_giant_patch14_224", "VIT_TINY_PATCH16_224", "vit_tiny_16_224", "vit_tiny_patch16_224.orig"]
)
def test_an_unknown_model_name_is_one_sentence_with_an_example(name):
    for make in (tv.ViTConfig.named, tv.ViT.named):
        with pytest.raises(ValueError, match=f"unknown model {name!r}.* vit_base_patch16_224") as caught:
            make(name)
        assert_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8), r"\(8, 8\); .* \(B, 2, H, W\)"),
        ((2, 8, 8), r"\(2, 8, 8\); .* \(B, 2, H, W\)"),
        ((1, 1, 2, 8, 8), r"\(B, 2, H, W\)"),
        ((1, 3, 8, 8), r"\(1, 3, 8, 8\); .* \(B, 2, H, W\), .* \(1, 2, 8, 8\)"),
        ((1, 8, 8, 2), r"\(B, 2, H, W\)"),
        ((1, 2, 8, 6), "8×6 pixels .* 4×4"),
        ((1, 2, 7, 8), "7×8 pixels .* 4×4"),
    ],
)
@pytest.mark.parametrize("kind", [np.asarray, tv.tensor])
def test_images_of_the_wrong_shape_are_one_sentence_that_says_what_fits(shape, message, kind):
    with pytest.raises(ValueError, match=message) as caught:
        tv.ViT(SMALL)(kind(np.zeros(shape, np.float32)))
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("kind", [np.asarray, tv.tensor])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_integer_images_are_an_error_that_asks_to_scale_them(dtype, kind):
    with pytest.raises(TypeError, match=f"images are {np.dtype(dtype)}: scale them"):
        tv.ViT(SMALL)(kind(np.ones((1, 2, 8, 8), dtype)))


def assert_one_sentence(error):
    message = str(error)
    assert "\n" not in message
    assert ". " not in message
    assert not message.endswith(".")
