"""Each family of weights beside the library that it is from: logits, features and gradients, at two sizes of image.

A small model is made by the family's own library and filled with random numbers, written as that library writes it, and
opened. Google's models, whose library is JAX's, are beside a plain forward in their own layout.
"""

import math

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.pretrained.families import FAMILIES

torch = pytest.importorskip("torch")
from peer_libraries import timm_module, transformers_module
from torch.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
NATIVE, OTHER = (32, 32), (24, 48)


class Case:
    """A model of another library.

    Attributes:
        path: the file or folder that it was written to.
        parameters: name in the file → torch.nn.Parameter.
        forward: (images, parameters) → logits or features.
        settings: for `from_pretrained`.
    """

    def __init__(self, path, parameters, forward, **settings):
        self.path, self.parameters, self.forward, self.settings = path, parameters, forward, settings


def fill(parameters, seed=0):
    """Random numbers in all parameters, so that none is left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in parameters.items():
            scale = 1 if "norm" in name.lower() and name.endswith(("weight", "scale")) else 0
            p.copy_(scale + 0.2 * torch.randn(p.shape, generator=generator))


def timm_case(tmp_path, architecture, dynamic=True, **changes):
    timm = timm_module()
    args = {**TINY, "num_classes": 5, **changes}
    model = timm.create_model(architecture, **args, **({"dynamic_img_size": True} if dynamic else {})).eval()
    parameters = dict(model.named_parameters())
    fill(parameters)
    from timm.models._hub import save_for_hf

    save_for_hf(model, str(tmp_path), model_args=args, safe_serialization=True)
    return Case(tmp_path, parameters, lambda x, p: torch.func.functional_call(model, p, (x,)))


def hf_case(tmp_path, model_class, config_class, **changes):
    transformers = transformers_module()
    from safetensors.numpy import load_file

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = getattr(transformers, config_class)(**sizes, num_labels=5, **changes)
    model = getattr(transformers, model_class)(config).eval()
    parameters = dict(model.named_parameters())
    fill(parameters)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")  # under names that the library changes on the way to the disk
    in_memory = {name: _parts_of(array, parameters) for name, array in saved.items()}
    assert sorted(n for parts in in_memory.values() for n in parts) == sorted(parameters)
    on_disk = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in saved.items()}
    named = {"interpolate_pos_encoding": True} if config.model_type in ("vit", "deit") else {}

    def forward(x, p):
        arrays = {}
        for name, parts in in_memory.items():
            arrays |= dict(zip(parts, torch.chunk(p[name], len(parts)), strict=True))
        out = torch.func.functional_call(model, arrays, (x,), named)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state[:, 0]

    return Case(tmp_path, on_disk, forward)


def _parts_of(array, parameters):
    """The parameter that was written as this array, or the two whose rows it has one after the other."""
    values = {name: p.detach().numpy() for name, p in parameters.items()}
    found = [(name,) for name, value in values.items() if np.array_equal(array, value)]
    halves = np.split(array, 2) if len(array) % 2 == 0 else []
    found += [
        (a, b)
        for a, x in values.items()
        for b, y in values.items()
        if halves and all(map(np.array_equal, halves, (x, y)))
    ]
    return found[0]


def facebook_case(tmp_path, architecture, resized, registers=0, **changes):
    """DINO and DINOv2 in their own files: timm's forward, with positions as Facebook resamples them."""
    timm = timm_module()
    args = {**TINY, "num_classes": 0, "class_token": True, "no_embed_class": True, "reg_tokens": registers, **changes}
    model = timm.create_model(architecture, **args, dynamic_img_size=True).eval()
    theirs = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(3)
    theirs["pos_embed"] = torch.nn.Parameter(torch.randn(1, 17, args["embed_dim"], generator=generator))
    fill(theirs)
    swiglu = "giant" in architecture
    names = {name: _facebook(name, swiglu) for name in theirs}
    extra = {"mask_token": torch.zeros(1, args["embed_dim"])} if registers or swiglu or "dinov2" in architecture else {}
    torch.save({names[n]: p.detach() for n, p in theirs.items()} | extra, tmp_path / "weights.pth")

    def forward(x, p):
        ours = {name: p[names[name]] for name in theirs}
        table, grid = ours["pos_embed"], (x.shape[2] // 8, x.shape[3] // 8)
        square = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        patches = square if grid == (4, 4) else resized(square, grid)
        tables = {"pos_embed": patches.flatten(2).transpose(1, 2), "cls_token": ours["cls_token"] + table[:, :1]}
        # So many positions are not what the model was made with: it is told to take them as they are.
        model._pos_embed = lambda tokens: _placed(tokens, ours, tables)
        return torch.func.functional_call(model, {**ours, **tables}, (x,))

    return Case(tmp_path / "weights.pth", {names[n]: p for n, p in theirs.items()}, forward, num_heads=2)


def _facebook(name, swiglu):
    for old, new in (("reg_token", "register_tokens"), *([("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")] * swiglu)):
        name = name.replace(old, new)
    return name


def _placed(tokens, ours, tables):
    B, h, w, D = tokens.shape
    before = [tables["cls_token"], *([ours["reg_token"]] if "reg_token" in ours else [])]
    x = tokens.reshape(B, h * w, D) + tables["pos_embed"]
    return torch.cat([*(token.expand(B, -1, -1) for token in before), x], dim=1)


def with_offset(square, grid):
    factors = [(new + 0.1) / 4 for new in grid]
    return F.interpolate(square, scale_factor=factors, mode="bicubic", recompute_scale_factor=False)


def antialiased(square, grid):
    return F.interpolate(square, size=grid, mode="bicubic", antialias=True)


def google_case(tmp_path, layout, depth=2, dim=32, heads=2, scan=False, **parts):
    """A model in flax's layout, with a forward written from big_vision's and vit_jax's own."""
    jax = layout == "vit_jax"
    norm1, attention, norm2, mlp = (
        ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        if jax
        else ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    )
    cls, K, W = parts.get("cls", True), parts.get("classes", 5), parts.get("pre_logits", 0)
    shapes = {"embedding/kernel": (8, 8, 3, dim), "embedding/bias": (dim,)}
    positions = "Transformer/posembed_input/pos_embedding" if jax else "pos_embedding"
    if not parts.get("sincos"):
        shapes[positions] = (1, 16 + jax, dim)
    if cls:
        shapes["cls"] = (1, 1, dim)
    d = dim // heads
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        for norm in (norm1, norm2):
            shapes |= {f"{block}/{norm}/scale": (dim,), f"{block}/{norm}/bias": (dim,)}
        for name in ("query", "key", "value"):
            shapes |= {
                f"{block}/{attention}/{name}/kernel": (dim, heads, d),
                f"{block}/{attention}/{name}/bias": (heads, d),
            }
        shapes |= {f"{block}/{attention}/out/kernel": (heads, d, dim), f"{block}/{attention}/out/bias": (dim,)}
        shapes |= {f"{block}/{mlp}/Dense_0/kernel": (dim, 48), f"{block}/{mlp}/Dense_0/bias": (48,)}
        shapes |= {f"{block}/{mlp}/Dense_1/kernel": (48, dim), f"{block}/{mlp}/Dense_1/bias": (dim,)}
    shapes |= {"Transformer/encoder_norm/scale": (dim,), "Transformer/encoder_norm/bias": (dim,)}
    if W:
        shapes |= {"pre_logits/kernel": (dim, W), "pre_logits/bias": (W,)}
    shapes |= {"head/kernel": (W or dim, K), "head/bias": (K,)}
    parameters = {name: torch.nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()}
    fill(parameters)
    arrays = {name: p.detach().numpy() for name, p in parameters.items()}
    if scan:
        arrays = _scanned(arrays, depth)
    prefix = parts.get("prefix", "")
    np.savez(tmp_path / "weights.npz", **{f"{prefix}{name}": array for name, array in arrays.items()})

    def norm(p, x, name):
        return F.layer_norm(x, (dim,), p[f"{name}/scale"], p[f"{name}/bias"], 1e-6)

    def dense(p, x, name):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def attend(p, x, name):
        q, k, v = (
            torch.einsum("btd,dhk->bhtk", x, p[f"{name}/{part}/kernel"]) + p[f"{name}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(d)).softmax(-1)
        return torch.einsum("bhtk,hkd->btd", weights @ v, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]

    def forward(x, p):
        B, _, H, W_ = x.shape
        grid = H // 8, W_ // 8
        patches = x.reshape(B, 3, grid[0], 8, grid[1], 8)
        tokens = torch.einsum("bchpwq,pqcd->bhwd", patches, p["embedding/kernel"]).flatten(1, 2) + p["embedding/bias"]
        if parts.get("sincos"):
            tokens = tokens + torch.from_numpy(sincos(*grid, dim).astype(np.float32))
        table = p.get(positions)
        if table is not None:
            first, rest = table[:, :1], table[:, 1:] if jax else table
            rest = zoomed(rest, grid)
        if jax:
            tokens = torch.cat([(p["cls"] + first).expand(B, -1, -1), tokens + rest], 1)
        else:
            tokens = tokens if table is None else tokens + rest
            tokens = torch.cat([p["cls"].expand(B, -1, -1), tokens], 1) if cls else tokens
        for i in range(depth):
            block = f"Transformer/encoderblock_{i}"
            tokens = tokens + attend(p, norm(p, tokens, f"{block}/{norm1}"), f"{block}/{attention}")
            hidden = F.gelu(dense(p, norm(p, tokens, f"{block}/{norm2}"), f"{block}/{mlp}/Dense_0"), approximate="tanh")
            tokens = tokens + dense(p, hidden, f"{block}/{mlp}/Dense_1")
        tokens = norm(p, tokens, "Transformer/encoder_norm")
        y = tokens[:, 0] if cls else tokens.mean(1)
        y = torch.tanh(dense(p, y, "pre_logits")) if W else y
        return dense(p, y, "head")

    return Case(tmp_path / "weights.npz", {f"{prefix}{name}": p for name, p in parameters.items()},
                lambda x, p: forward(x, {name.removeprefix(prefix): value for name, value in p.items()}))  # fmt: skip


def _scanned(arrays, depth):
    """All layers in one array, as big_vision's scan=True has them."""
    layers = {name for name in arrays if "encoderblock_0" in name}
    scanned = {n: array for n, array in arrays.items() if "encoderblock_" not in n}
    for name in layers:
        stacked = [arrays[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(depth)]
        scanned[name.replace("encoderblock_0", "encoderblock")] = np.stack(stacked)
    return scanned


def zoomed(table, grid):
    """scipy.ndimage.zoom of order 1, which is PyTorch's bilinear with corners aligned."""
    square = table.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    return F.interpolate(square, size=grid, mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)


def sincos(h, w, dim):
    y, x = np.mgrid[:h, :w]
    omega = 1.0 / 10000.0 ** (np.arange(dim // 4) / (dim // 4 - 1))
    y, x = np.einsum("m,d->md", y.ravel(), omega), np.einsum("m,d->md", x.ravel(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)[None]


DINOV2_SIZES = {"mlp_ratio": 2}
CASES = {
    "timm ViT": lambda to: timm_case(to, "vit_tiny_patch16_224"),
    "timm ViT, relu": lambda to: timm_case(to, "vit_tiny_patch16_224", act_layer="relu"),
    "timm ViT, tanh gelu": lambda to: timm_case(to, "vit_tiny_patch16_224", act_layer="gelu_tanh"),
    "timm ViT without qkv bias": lambda to: timm_case(to, "vit_base_patch16_224_miil", qkv_bias=False),
    "timm DeiT": lambda to: timm_case(to, "deit_tiny_patch16_224"),
    "timm DeiT distilled": lambda to: timm_case(to, "deit_tiny_distilled_patch16_224"),
    "timm DeiT-III": lambda to: timm_case(to, "deit3_small_patch16_224"),
    "timm gap, norm after the mean": lambda to: timm_case(to, "vit_tiny_patch16_224", global_pool="avg"),
    "timm gap, norm before the mean": lambda to: timm_case(to, "vit_medium_patch16_gap_240"),
    "timm registers, gap": lambda to: timm_case(to, "vit_medium_patch16_reg4_gap_256"),
    "timm registers with positions": lambda to: timm_case(to, "vit_tiny_patch16_224", reg_tokens=2),
    "timm DINOv2": lambda to: timm_case(to, "vit_small_patch14_dinov2"),
    "timm DINOv2 with registers": lambda to: timm_case(to, "vit_small_patch14_reg4_dinov2"),
    "timm DINOv2 giant": lambda to: timm_case(to, "vit_giant_patch14_dinov2", embed_dim=48),
    "timm without a head": lambda to: timm_case(to, "vit_tiny_patch16_224", num_classes=0),
    "HF ViT": lambda to: hf_case(to, "ViTForImageClassification", "ViTConfig", intermediate_size=48),
    "HF ViT without a head (DINO)": lambda to: hf_case(
        to, "ViTModel", "ViTConfig", intermediate_size=48, layer_norm_eps=1e-6, qkv_bias=False
    ),
    "HF ViT, tanh gelu": lambda to: hf_case(
        to, "ViTForImageClassification", "ViTConfig", intermediate_size=48, hidden_act="gelu_new"
    ),
    "HF DeiT": lambda to: hf_case(to, "DeiTForImageClassification", "DeiTConfig", intermediate_size=48),
    "HF DeiT distilled": lambda to: hf_case(
        to, "DeiTForImageClassificationWithTeacher", "DeiTConfig", intermediate_size=48
    ),
    "HF Dinov2": lambda to: hf_case(to, "Dinov2ForImageClassification", "Dinov2Config", **DINOV2_SIZES),
    "HF Dinov2 without a head": lambda to: hf_case(to, "Dinov2Model", "Dinov2Config", **DINOV2_SIZES),
    "HF Dinov2 giant": lambda to: hf_case(
        to, "Dinov2ForImageClassification", "Dinov2Config", use_swiglu_ffn=True, **DINOV2_SIZES
    ),
    "HF Dinov2 with registers": lambda to: hf_case(
        to, "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", **DINOV2_SIZES
    ),
    "Facebook DINO": lambda to: facebook_case(to, "vit_small_patch16_224", with_offset),
    "Facebook DINOv2": lambda to: facebook_case(to, "vit_small_patch14_dinov2", with_offset),
    "Facebook DINOv2 giant": lambda to: facebook_case(to, "vit_giant_patch14_dinov2", with_offset, embed_dim=48),
    "Facebook DINOv2 with registers": lambda to: facebook_case(
        to, "vit_small_patch14_dinov2", antialiased, registers=4
    ),
    "vit_jax": lambda to: google_case(to, "vit_jax"),
    "vit_jax with pre-logits": lambda to: google_case(to, "vit_jax", pre_logits=24),
    "vit_jax within a checkpoint": lambda to: google_case(to, "vit_jax", prefix="opt/target/"),
    "big_vision": lambda to: google_case(to, "big_vision", prefix="params/"),
    "big_vision, gap": lambda to: google_case(to, "big_vision", cls=False),
    "big_vision, gap, scanned": lambda to: google_case(to, "big_vision", cls=False, scan=True, prefix="params/img/"),
}


def compared(case, model, shape):
    """Logits of both, and the gradients of both along a random cotangent: (ours, theirs), {name: (ours, theirs)}."""
    rng = np.random.default_rng(5)
    images = rng.standard_normal((2, 3, *shape), dtype=np.float32)
    x = tv.tensor(images, requires_grad=True)
    y = model(x)
    cotangent = rng.standard_normal(y.shape, dtype=np.float32)
    model.zero_grad()
    y.backward(cotangent)
    theirs = torch.from_numpy(images).requires_grad_()
    for p in case.parameters.values():
        p.grad = None
    expected = case.forward(theirs, dict(case.parameters))
    expected.backward(torch.from_numpy(cotangent))
    gradients = {"image": (x.grad.numpy(), theirs.grad.numpy())}
    named, convert = dict(model.named_parameters()), kind_of(model).convert
    for ours, scanned in model.report.mapped.items():
        names = [name.replace("encoderblock/", f"encoderblock_{_layer(ours)}/") for name in scanned]
        if ours not in model.report.changed and ours in named and all(name in case.parameters for name in names):
            grads = [case.parameters[name].grad.numpy() for name in names]
            gradients[ours] = named[ours].grad.numpy(), convert(ours, grads)
    return (y.numpy(), expected.detach().numpy()), gradients


def _layer(name):
    return name.split(".")[1] if name.startswith("blocks.") else ""


def kind_of(model):
    return next(family for family in FAMILIES.values() if family.title == model.report.family)


def assert_near(ours, theirs, tolerance, what):
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert ours.shape == theirs.shape, what
    assert error <= tolerance, (what, error)


ONE_EACH = {  # in every run; all of them in the slow one
    "timm ViT", "timm DeiT distilled", "timm registers, gap", "HF ViT", "HF DeiT", "HF Dinov2 with registers",
    "Facebook DINO", "Facebook DINOv2 giant", "vit_jax with pre-logits", "big_vision, gap, scanned",
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [pytest.param(CASES[name], id=name, marks=[] if name in ONE_EACH else pytest.mark.slow) for name in CASES],
)
def test_logits_and_gradients_are_the_familys_own_at_two_sizes(tmp_path, case):
    case = case(tmp_path)
    model = tv.from_pretrained(case.path, **case.settings)
    assert not model.training
    for shape in (NATIVE, OTHER):
        logits, gradients = compared(case, model, shape)
        assert_near(*logits, 1e-5, shape)
        for name, (ours, theirs) in gradients.items():
            assert_near(ours, theirs, 1e-4, (name, shape))
        assert len(gradients) > 0.8 * len(list(model.parameters()))
    images = np.random.default_rng(1).standard_normal((2, 3, *OTHER), dtype=np.float32)
    resized = tv.from_pretrained(case.path, image_size=OTHER, **case.settings)
    assert_near(resized(images).numpy(), model(images).numpy(), 1e-5, "resized when opened")


@pytest.mark.parametrize("size", [NATIVE, OTHER])
def test_big_visions_sines_and_cosines_are_made_for_the_size_that_is_asked_for(tmp_path, size):
    case = google_case(tmp_path, "big_vision", cls=False, sincos=True)
    model = tv.from_pretrained(case.path, image_size=size)
    logits, gradients = compared(case, model, size)
    assert_near(*logits, 1e-5, size)
    assert_near(*gradients["image"], 1e-4, size)
    assert "made anew" in model.report.changed["pos_embed"]
