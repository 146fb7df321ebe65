"""Opening and saving weights: round trips, reports, other sizes, what is refused, and the Hub."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinyvit as tv
from tinyvit import cli
from tinyvit.pretrained import Preprocessing, WeightsError, from_pretrained, save_pretrained
from tinyvit.pretrained.families import FAMILIES
from tinyvit.pretrained.preprocessing import IMAGENET_256, TIMM

SMALL = tv.ViTConfig(image_size=32, patch_size=8, num_classes=5, dim=32, depth=2, num_heads=2, mlp_ratio=2)


def filled(config=SMALL, seed=0, **changes):
    """A model with random numbers in all its parameters."""
    model = tv.ViT(replace(config, **changes))
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        p.data[...] = ("norm" in name and name.endswith("weight")) + 0.2 * rng.standard_normal(p.shape)
    return model.eval()


def images_for(config, seed=3):
    return np.random.default_rng(seed).standard_normal((2, config.channels, config.height, config.width), np.float32)


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype, name
        np.testing.assert_array_equal(array, b[name], err_msg=name)


VARIANTS = {
    "plain": {},
    "relu, no qkv bias": {"activation": "relu", "qkv_bias": False},
    "tanh gelu": {"activation": "gelu_tanh"},
    "quick gelu": {"activation": "gelu_quick"},
    "layer scale": {"layer_scale": 1e-5},
    "mean": {"pool": "mean"},
    "norm after the mean": {"pool": "mean", "pool_norm": True},
    "no class token, registers": {"pool": "mean", "class_token": False, "register_tokens": 3},
    "class token without a position": {"class_position": False, "register_tokens": 2},
    "distilled": {"distillation_token": True},
    "no head": {"num_classes": 0},
    "wide, grey": {"image_size": (16, 48), "channels": 1},
    "odd FFN": {"mlp_ratio": 4304 / 1152},
}
HF_VARIANTS = {
    "ViT": {"eps": 1e-12},
    "ViT, wide": {"image_size": (16, 48)},
    "ViT, odd FFN, no qkv bias": {"mlp_ratio": 1.6, "qkv_bias": False, "activation": "gelu_quick"},
    "ViT without a head": {"num_classes": 0},
    "class token without a position": {"class_position": False},
    "DeiT": {"distillation_token": True},
    "Dinov2": {"layer_scale": 1e-5, "pool": "cls_mean"},
    "Dinov2 without a head": {"layer_scale": 1e-5, "num_classes": 0},
    "Dinov2 with registers": {"layer_scale": 1e-5, "pool": "cls_mean", "register_tokens": 4},
    "Dinov2 giant": {"layer_scale": 1e-5, "pool": "cls_mean", "activation": "swiglu", "mlp_ratio": 24 / 32},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_saved_as_timm_and_opened_again_a_model_has_the_same_bits(tmp_path, changes):
    model = filled(**changes)
    save_pretrained(model, tmp_path, "timm", classes=("a", "b", "c", "d", "e")[: model.config.num_classes])
    again = from_pretrained(tmp_path)
    assert_same_bits(again.state_dict(), model.state_dict())
    images = images_for(model.config)
    np.testing.assert_array_equal(again(images).numpy(), model(images).numpy())
    assert again.config == replace(model.config, resampling="bicubic_antialias", mlp_ratio=model.config.mlp_hidden / 32)
    assert again.classes == ("a", "b", "c", "d", "e")[: model.config.num_classes]
    assert not again.report.guessed
    assert not again.report.ignored
    save_pretrained(again, tmp_path / "second")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("changes", HF_VARIANTS.values(), ids=HF_VARIANTS)
def test_saved_as_hugging_face_and_opened_again_a_model_has_the_same_bits(tmp_path, changes):
    model = filled(**changes)
    save_pretrained(model, tmp_path, "huggingface", preprocessing=IMAGENET_256.for_size((32, 32)))
    again = from_pretrained(tmp_path)
    images = images_for(model.config)
    np.testing.assert_array_equal(again(images).numpy(), model(images).numpy())
    if model.config.class_position:
        assert_same_bits(again.state_dict(), model.state_dict())
    assert again.config.eps == model.config.eps
    assert not again.report.guessed
    assert again.classes == ()


def test_swiglu_in_timms_layout_and_registers_beside_a_placed_class_token_compute_the_same(tmp_path):
    for i, changes in enumerate(({"activation": "swiglu", "layer_scale": 1e-5}, {"register_tokens": 2})):
        model = filled(**changes)
        save_pretrained(model, tmp_path / str(i))
        again = from_pretrained(tmp_path / str(i))
        images = images_for(model.config)
        np.testing.assert_array_equal(again(images).numpy(), model(images).numpy())


def test_sines_and_cosines_are_saved_as_the_table_that_they_are(tmp_path):
    model = filled(position="sincos")
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config.position == "learned"
    np.testing.assert_array_equal(again.state_dict()["pos_embed"], model.pos_embed.table.numpy())
    np.testing.assert_array_equal(again(images_for(SMALL)).numpy(), model(images_for(SMALL)).numpy())


@pytest.mark.parametrize(
    ("layout", "changes", "named"),
    [
        ("timm", {"pool": "cls_mean"}, "pool 'cls_mean'"),
        ("timm", {"eps": 1e-12}, "eps 1e-12"),
        ("timm", {"pre_logits": 4}, "pre_logits"),
        ("timm", {"distillation_token": True, "register_tokens": 1}, "distillation token beside registers"),
        ("huggingface", {"pool": "mean"}, "pooling by the mean"),
        ("huggingface", {"pool": "mean", "class_token": False}, "without a class token"),
        ("huggingface", {"register_tokens": 1}, "without LayerScale"),
        ("huggingface", {"layer_scale": 0.1}, "a head on the class token alone"),
        ("huggingface", {"layer_scale": 0.1, "num_classes": 0, "mlp_ratio": 1.7}, "an FFN of 54"),
        ("onnx", {}, "layout is 'onnx'; it must be one of timm, huggingface"),
    ],
    ids=str,
)
def test_what_a_layout_has_no_place_for_is_named_and_nothing_is_written(tmp_path, layout, changes, named):
    with pytest.raises(WeightsError, match=named):
        save_pretrained(filled(**changes), tmp_path / "new", layout)
    assert not (tmp_path / "new").exists()


def test_there_is_a_name_for_each_class_or_none(tmp_path):
    with pytest.raises(WeightsError, match="there are 2 names for 5 classes; give one for each, or none"):
        save_pretrained(filled(), tmp_path / "new", classes=("a", "b"))
    assert not (tmp_path / "new").exists()


def test_preprocessing_and_classes_travel_with_the_weights(tmp_path):
    model = filled()
    model.preprocessing = TIMM.for_size(32)
    model.classes = tuple("abcde")
    for layout in ("timm", "huggingface"):
        save_pretrained(model, tmp_path / layout, layout)
        again = from_pretrained(tmp_path / layout)
        assert str(again.preprocessing) == str(model.preprocessing)
        assert again.classes == model.classes
        assert again.preprocessing(np.zeros((40, 50, 3), np.uint8)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("preprocessing", "layouts"),
    [
        (TIMM.for_size(32), ("timm", "huggingface")),
        (Preprocessing((64, 64), "shortest", (93, 93)), ("timm", "huggingface")),  # 64 / (64 / 93) is below 93
        (Preprocessing((32, 32), "squash", interpolation="bilinear"), ("timm", "huggingface")),
        (Preprocessing((32, 32), "squash", (40, 40)), ("timm",)),
        (Preprocessing((32, 32), "longest"), ("timm",)),
        (Preprocessing((32, 64), "shortest", (40, 80)), ("timm",)),
        (Preprocessing((32, 32), "none"), ()),
    ],
    ids=str,
)
def test_images_are_prepared_alike_afterwards_or_refused(tmp_path, preprocessing, layouts):
    model = filled(image_size=preprocessing.size)
    for layout in ("timm", "huggingface"):
        if layout in layouts:
            save_pretrained(model, tmp_path / layout, layout, preprocessing=preprocessing)
            written = {file.name: json.loads(file.read_text()) for file in (tmp_path / layout).glob("*.json")}
            if layout == "timm":
                again = Preprocessing.from_timm(written["config.json"]["pretrained_cfg"])
            else:
                again = Preprocessing.from_huggingface(written["preprocessor_config.json"])
            assert str(again) == str(preprocessing)
        else:
            with pytest.raises(WeightsError, match="has no place for images"):
                save_pretrained(model, tmp_path / layout, layout, preprocessing=preprocessing)


# ----------------------------------------------------------------------------------------------- other libraries


def test_timm_and_transformers_open_what_is_saved_for_them(tmp_path):
    torch = pytest.importorskip("torch")
    from peer_libraries import timm_module, transformers_module

    timm, transformers = timm_module(), transformers_module()
    for name, changes in VARIANTS.items():
        model = filled(**changes)
        save_pretrained(model, tmp_path / "timm" / name)
        theirs = timm.create_model(f"local-dir:{tmp_path / 'timm' / name}", pretrained=True).eval()
        assert_agree(model, lambda x, theirs=theirs: theirs(x), torch, name)
    for name, changes in HF_VARIANTS.items():
        model = filled(**changes)
        folder = tmp_path / "hf" / name
        save_pretrained(
            model, folder, "huggingface", preprocessing=Preprocessing((model.config.height, model.config.width))
        )
        kind = transformers.AutoModelForImageClassification if model.config.num_classes else transformers.AutoModel
        theirs = kind.from_pretrained(folder).eval()

        def forward(x, theirs=theirs):
            out = theirs(x)
            return out.logits if "logits" in out else out.last_hidden_state[:, 0]

        assert_agree(model, forward, torch, name)


def assert_agree(model, forward, torch, name):
    images = images_for(model.config)
    with torch.no_grad():
        expected = forward(torch.from_numpy(images)).numpy()
    ours = model(images).numpy()
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max(), name


def test_through_pytorch_and_back_the_bits_are_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    model = filled()
    state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "weights.pth")
    again = from_pretrained(tmp_path / "weights.pth", num_heads=2)
    assert_same_bits(again.state_dict(), model.state_dict())
    assert again.report.asked == {}
    assert "preprocessing" in again.report.guessed


# ------------------------------------------------------------------------------------------------- what is asked for


@pytest.fixture
def saved(tmp_path):
    model = filled()
    save_pretrained(model, tmp_path / "weights", classes=tuple("abcde"))
    return model, tmp_path / "weights"


def test_a_new_head_is_zero_and_said_to_be_and_the_classes_go_with_the_old_one(saved):
    model, path = saved
    new = from_pretrained(path, num_classes=7)
    assert not new.head.weight.numpy().any()
    assert new.report.missing["head.weight"] == "a new head of 7 classes, zero at first"
    assert new.report.ignored == dict.fromkeys(["head.weight", "head.bias"], "the head that was asked for is another")
    assert new.classes == ()
    assert from_pretrained(path, num_classes=5).classes == tuple("abcde")
    none = from_pretrained(path, num_classes=0)
    images = images_for(SMALL)
    pooled = model.pooled(model.features(images)).numpy()
    np.testing.assert_allclose(none(images).numpy(), pooled, rtol=1e-5, atol=1e-5)


def test_another_size_of_image_and_patch_and_other_channels_are_reported(saved):
    _, path = saved
    grey = from_pretrained(path, image_size=(32, 64), patch_size=16, channels=1)
    assert grey(np.zeros((1, 1, 32, 64), np.float32)).shape == (1, 5)
    assert grey.report.changed == {
        "pos_embed": "resampled from 4×4 to 2×4 patches (bicubic_antialias)",
        "patch_embed.proj.weight": "from 3 to 1 channels, from 8 to 16 pixels a side, products kept",
    }
    assert grey.report.asked == {
        "image_size": "the file has 32",
        "patch_size": "the file has 8",
        "channels": "the file has 3",
    }
    assert (grey.preprocessing.size, grey.preprocessing.channels) == ((32, 64), 1)
    text = str(grey.report)
    for part in (
        "timm, safetensors of float32",
        "2 heads",
        "eps 1e-06",
        "resampled bicubic_antialias",
        "patch_size = 16",
    ):
        assert part in text


def test_a_grey_copy_of_an_image_gives_what_its_three_channels_gave(saved):
    model, path = saved
    grey = from_pretrained(path, channels=1)
    image = np.random.default_rng(0).standard_normal((2, 1, 32, 32), np.float32)
    expected = model(np.repeat(image, 3, axis=1)).numpy()
    np.testing.assert_allclose(grey(image).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_settings_that_no_array_shows_can_be_set_and_others_cannot(saved):
    _, path = saved
    model = from_pretrained(path, activation="gelu_tanh", eps=1e-5, drop_path=0.1, resampling="bilinear")
    c = model.config
    assert (c.activation, c.eps, c.drop_path, c.resampling) == ("gelu_tanh", 1e-5, 0.1, "bilinear")
    assert model.report.asked["activation"] == "the file has gelu"
    with pytest.raises(TypeError, match="takes no depth; what may be set is num_heads"):
        from_pretrained(path, depth=3)
    with pytest.raises(ValueError, match="image_size 30×30 is not a multiple"):
        from_pretrained(path, image_size=30)


def test_a_run_of_tinyvit_opens_like_any_other(tmp_path):
    from tinyvit.training.run import Run

    tables = {"model": {"dim": 16, "depth": 1, "num_heads": 2, "position": "sincos"}, "training": {"epochs": 1}}
    run = Run(tables, tmp_path / "run", "cpu")
    run.train()
    for path in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        model = from_pretrained(path)
        assert_same_bits(model.state_dict(), run.trainer.model.state_dict())
        assert model.config == run.config.model
        assert model.classes == tuple("0123456789")
    digit = run.dataset.test.images[0, 0]
    expected = (digit / 255 - run.config.data.mean[0]) / run.config.data.std[0]
    np.testing.assert_allclose(model.preprocessing(digit)[0, 0], expected, atol=1e-6)
    wider = from_pretrained(tmp_path / "run", num_classes=3, image_size=16)
    assert wider(np.zeros((1, 1, 16, 16), np.float32)).shape == (1, 3)


def test_heads_that_nobody_can_guess_have_to_be_given(tmp_path):
    from safetensors.numpy import save_file

    state = filled().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="does not say how many heads it has, nor does its width: give num_heads"):
        from_pretrained(tmp_path / "w.safetensors")
    usual = filled(dim=128, num_heads=2)
    save_file(usual.state_dict(), tmp_path / "u.safetensors")
    opened = from_pretrained(tmp_path / "u.safetensors")
    assert opened.config.num_heads == 2
    assert opened.report.guessed["num_heads"] == "models of width 128 have as many"
    assert set(opened.report.guessed) == {"num_heads", "activation", "eps", "preprocessing"}


# --------------------------------------------------------------------------------------------------- what is refused


def written(path, arrays):
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


REFUSED = {
    "rope_embed.periods": "a DINOv3 model",
    "backbone.storage_tokens": "a DINOv3 model",
    "visual.class_embedding": "an image tower of CLIP",
    "vision_model.embeddings.class_embedding": "CLIP or SigLIP in Hugging Face's layout",
    "vision_model.head.probe": "the image tower of SigLIP",
    "norm_pre.weight": "normed before its first layer",
    "attn_pool.latent": "pooled by attention",
    "patch_embed.backbone.stem.conv.weight": "a hybrid",
    "blocks.0.attn.q_norm.weight": "norms queries and keys",
    "blocks.0.in_proj.weight": "parallel blocks",
    "blocks.0.attns.0.norm.weight": "parallel blocks",
    "blocks.0.attn.lambda_q1": "differential attention",
    "encoder.layers.encoder_layer_0.ln_1.weight": "torchvision's ViT",
    "layers.0.blocks.0.attn.qkv.weight": "Swin",
    "layer1.0.conv1.weight": "a convolutional network",
    "transformer.h.0.attn.c_attn.weight": "a language model",
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_no_vit_of_ours_are_refused_by_name(tmp_path, name):
    path = written(tmp_path / "w.safetensors", {**filled().state_dict(), name: np.zeros(4, np.float32)})
    with pytest.raises(WeightsError, match=REFUSED[name]):
        from_pretrained(path, num_heads=2)


def test_a_hybrid_and_a_map_head_of_google_are_refused_by_name(tmp_path):
    for name, what in (("conv_root/kernel", "a hybrid"), ("params/img/MAPHead_0/probe", "SigLIP")):
        np.savez(tmp_path / "w.npz", **{name: np.zeros(3, np.float32)})
        with pytest.raises(WeightsError, match=what):
            from_pretrained(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blocks.0.norm1.bias": None}, "lacks blocks.0.norm1.bias"),
        ({"norm.weight": None, "norm.bias": None}, r"lacks norm.weight, norm.bias"),
        ({"blocks.0.extra": np.zeros(3, np.float32)}, "has arrays that no ViT here takes: blocks.0.extra"),
        ({"pos_embed": np.zeros((1, 15, 32), np.float32)}, "15 positions, which do not go with images of"),
        ({"pos_embed": None}, "has no positions"),
        ({"patch_embed.proj.weight": None}, "nothing that could be patch_embed.proj.weight: it is no whole ViT"),
        ({"patch_embed.proj.weight": np.zeros((32, 3, 8, 4), np.float32)}, "8×4 pixels are no squares"),
        ({"patch_embed.proj.weight": np.zeros((32, 192), np.float32)}, "where 4 axes are expected"),
        ({"head.bias": np.zeros(4, np.float32)}, r"head.bias is \(4,\), where \(5,\) is expected"),
        ({"norm.bias": np.full(32, np.nan, np.float32)}, "norm.bias has 32 numbers that are NaN or infinite"),
        ({"blocks.1.attn.qkv.weight": np.full((96, 32), np.inf, np.float32)}, "NaN or infinite"),
        ({"blocks.0.mlp.fc2.weight": np.zeros((32, 0), np.float32)}, "mlp_ratio"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_make_no_vit_are_one_sentence(saved, change, reason):
    model, path = saved
    arrays = {**model.state_dict(), **change}
    written(path / "model.safetensors", {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(WeightsError, match=reason) as caught:
        from_pretrained(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_args": {"qk_norm": True}}, "qk_norm = True is not one that tinyvit has"),
        ({"model_args": {"img_size": 32, "num_heads": 3}}, "describes no ViT: num_heads 3 does not divide dim 32"),
        ({"model_args": {"img_size": 32, "num_heads": 2, "act_layer": "swish"}}, "act_layer is 'swish'"),
        ({"global_pool": "map"}, "global_pool is 'map'"),
        ({"model_args": {"img_size": 64, "num_heads": 2}}, "17 positions, which do not go with images of 64 pixels"),
    ],
    ids=str,
)
def test_settings_that_tinyvit_does_not_have_are_one_sentence(saved, change, reason):
    _, path = saved
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(WeightsError, match=reason):
        from_pretrained(path)


def test_a_small_file_that_would_make_a_huge_model_is_refused_before_memory_is_taken(saved):
    model, path = saved
    arrays = model.state_dict()
    D = 100_000  # whose attention alone would take 160 GB
    arrays["patch_embed.proj.weight"] = np.zeros((D, 3, 8, 8), np.float16)
    written(path / "model.safetensors", arrays)
    with pytest.raises(WeightsError, match="too few for 2 layers of width 100000"):
        from_pretrained(path)
    arrays = {**model.state_dict(), "blocks.999999999.norm1.weight": np.zeros(3, np.float32)}
    written(path / "model.safetensors", arrays)
    with pytest.raises(WeightsError, match="names a layer 999,999,999, but holds 33 arrays"):
        from_pretrained(path)


def test_names_that_are_one_without_a_prefix_are_refused(saved):
    model, path = saved
    written(path / "model.safetensors", {**model.state_dict(), "module.norm.weight": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=r"holds 'norm.weight' twice, with a prefix and without"):
        from_pretrained(path)
    chunks = {"blocks.0.0.norm1.weight": np.zeros(3, np.float32), "blocks.1.0.norm1.weight": np.zeros(3, np.float32)}
    written(path / "model.safetensors", chunks)
    with pytest.raises(WeightsError, match=r"holds 'blocks.0.norm1.weight' twice, in two chunks"):
        from_pretrained(path)


def google_arrays():
    """A tiny model in the layout of vit_jax."""
    rng = np.random.default_rng(0)
    shapes = {"embedding/kernel": (4, 4, 3, 8), "embedding/bias": (8,), "cls": (1, 1, 8), "head/kernel": (8, 3)}
    shapes |= {"head/bias": (3,), "Transformer/posembed_input/pos_embedding": (1, 5, 8)}
    for norm in ("encoder_norm", "encoderblock_0/LayerNorm_0", "encoderblock_0/LayerNorm_2"):
        shapes |= {f"Transformer/{norm}/scale": (8,), f"Transformer/{norm}/bias": (8,)}
    for part in ("query", "key", "value"):
        name = f"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/{part}"
        shapes |= {f"{name}/kernel": (8, 2, 4), f"{name}/bias": (2, 4)}
    out, mlp = "MultiHeadDotProductAttention_1/out", "MlpBlock_3/Dense_"
    shapes |= {f"Transformer/encoderblock_0/{out}/kernel": (2, 4, 8), f"Transformer/encoderblock_0/{out}/bias": (8,)}
    shapes |= {f"Transformer/encoderblock_0/{mlp}0/kernel": (8, 16), f"Transformer/encoderblock_0/{mlp}0/bias": (16,)}
    shapes |= {f"Transformer/encoderblock_0/{mlp}1/kernel": (16, 8), f"Transformer/encoderblock_0/{mlp}1/bias": (8,)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def mutated(arrays, rng):
    """The arrays with one to three of them lost, renamed, of another shape, or with NaN."""
    arrays = dict(arrays)
    for _ in range(rng.integers(1, 4)):
        name = list(arrays)[rng.integers(len(arrays))]
        array = arrays.pop(name)
        kind = rng.integers(7)
        if kind == 1:
            arrays[name.replace("0", "1") + rng.choice(["", "x"])] = array
        elif kind == 2:
            arrays[name] = array.reshape(-1)
        elif kind == 3:
            arrays[name] = array.sum()
        elif kind == 4:
            arrays[name] = np.repeat(array, rng.integers(0, 3), axis=rng.integers(array.ndim)) if array.ndim else array
        elif kind == 5:
            arrays[name] = np.where(rng.random(array.shape) < 0.1, np.nan, array).astype(np.float32)
        elif kind == 6:
            arrays[name] = array[None]
    return arrays


@pytest.mark.parametrize("layout", ["timm", "huggingface", "google"])
def test_mutated_arrays_and_settings_open_or_are_refused_in_one_sentence(tmp_path, layout):
    from safetensors.numpy import load_file

    if layout != "google":
        save_pretrained(filled(depth=1), tmp_path, layout)
        config = json.loads((tmp_path / "config.json").read_text())
    whole = google_arrays() if layout == "google" else load_file(tmp_path / "model.safetensors")
    odd = [None, 0, -1, 2**40, 1.5, "x", [], {}, [3, 32], True]
    refusals = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        arrays = mutated(whole, rng) if seed % 3 else whole
        if layout == "google":
            np.savez(tmp_path / "w.npz", **arrays)
        else:
            written(tmp_path / "model.safetensors", arrays)
            place = config["model_args"] if layout == "timm" and seed % 2 else config
            settings = {**place, list(place)[rng.integers(len(place))]: odd[rng.integers(len(odd))]}
            (tmp_path / "config.json").write_text(
                json.dumps({**config, "model_args": settings} if place is not config else settings)
            )
        try:
            from_pretrained(tmp_path / "w.npz" if layout == "google" else tmp_path)
        except WeightsError as error:
            refusals.append(str(error))
    assert 50 < len(refusals) <= 150
    assert not [text for text in refusals if "\n" in text or len(text) > 1000]


def test_something_else_and_an_unknown_family_are_told_what_there_is(tmp_path):
    path = written(tmp_path / "w.safetensors", {"a.weight": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match="no ViT that tinyvit knows; known are Google's ViT"):
        from_pretrained(path)
    named = from_pretrained(written(tmp_path / "v.safetensors", filled().state_dict()), num_heads=2, family="timm")
    assert "family" not in named.report.guessed
    with pytest.raises(WeightsError, match=f"unknown family 'beit'; the known ones are {', '.join(FAMILIES)}"):
        from_pretrained(path, family="beit")


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_predict_opens_weights_of_others_with_their_own_preprocessing(saved, picture, capsys):
    model, path = saved
    pixels = from_pretrained(path).preprocessing(picture)
    p = tv.ops.softmax(model(pixels)).numpy()[0]
    assert cli.main(["predict", str(path), str(picture), "--json", "--top", "5"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["class"] for one in answer["top"]] == ["abcde"[k] for k in np.argsort(-p)]
    np.testing.assert_allclose([one["probability"] for one in answer["top"]], -np.sort(-p), rtol=1e-4)
    assert cli.main(["predict", str(path), str(picture)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(from_pretrained(path).report))
    save_pretrained(filled(num_classes=0), path)
    assert cli.main(["predict", str(path), str(picture)]) == 3
    assert "has no head, and so no classes: look at its features instead" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["timm", "huggingface"])
def test_export_writes_what_from_pretrained_opens_again(saved, tmp_path, capsys, layout):
    model, path = saved
    assert cli.main(["export", str(path), str(tmp_path / "out"), "--layout", layout]) == 0
    assert f"parameters in {layout}'s layout" in capsys.readouterr().out
    again = from_pretrained(tmp_path / "out")
    assert_same_bits(again.state_dict(), model.state_dict())
    assert again.classes == tuple("abcde")


def test_summary_tells_of_weights_of_others(saved, capsys):
    model, path = saved
    assert cli.main(["summary", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == model.num_parameters


def test_export_names_what_a_layout_has_no_place_for(tmp_path, capsys):
    save_pretrained(filled(pool="mean"), tmp_path / "in")
    assert cli.main(["export", str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "huggingface"]) == 3
    assert "Hugging Face's ViT has no place for pooling by the mean" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_starts_from_weights_and_repeats_to_the_bit(saved, tmp_path, capsys):
    _, path = saved
    settings = ["--set", "model.patch_size=4", "--set", "training.epochs=1", "--set", "training.warmup_epochs=0"]
    settings += ["--set", "training.layer_decay=0.7", "--set", "training.freeze=1", "--set", "data.augment=none"]
    assert cli.main(["train", "--init", str(path), "--out", str(tmp_path / "run"), *settings]) == 0
    out = capsys.readouterr().out
    assert "resampled from 4×4 to 2×2 patches" in out
    assert "from 3 to 1 channels, from 8 to 4 pixels a side" in out
    assert "a new head of 10 classes" in out
    first = from_pretrained(tmp_path / "run").state_dict()
    start = from_pretrained(path, image_size=8, patch_size=4, channels=1, num_classes=10).state_dict()
    for name, array in start.items():
        frozen = name.startswith(("patch_embed", "cls_token", "pos_embed", "blocks.0"))
        assert np.array_equal(first[name], array) == frozen, name
    config = str(tmp_path / "run" / "config.toml")
    assert cli.main(["train", "--config", config, "--out", str(tmp_path / "again")]) == 0
    assert_same_bits(from_pretrained(tmp_path / "again").state_dict(), first)


def test_a_run_cannot_be_of_another_model_than_the_weights_it_starts_from(saved, tmp_path, capsys):
    _, path = saved
    asked = ["train", "--init", str(path), "--out", str(tmp_path / "run"), "--set", "model.patch_size=4"]
    assert cli.main([*asked, "--set", "model.depth=3"]) == 3
    assert "has model.depth 2; a run that starts from it cannot have another" in capsys.readouterr().err
    assert cli.main(["train", "--init", str(tmp_path / "nothing"), "--out", str(tmp_path / "run")]) == 3
    assert "does not exist; check the path" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------------------- the Hub


def test_a_name_on_the_hub_is_fetched_by_its_own_library(saved, monkeypatch, capsys):
    model, path = saved
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision))
        assert "model.safetensors" in allow_patterns
        assert "config.json" in allow_patterns
        if name == "nobody/nothing":
            raise OSError("404: no such model\nsecond line")
        return str(path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    opened = tv.from_pretrained("hf://owner/name@v2")
    assert_same_bits(opened.state_dict(), model.state_dict())
    assert opened.report.source == "hf://owner/name@v2"
    tv.from_pretrained(Path("hf://owner/name"))
    assert asked == [("owner/name", "v2"), ("owner/name", None)]
    assert cli.main(["train", "--init", "hf://owner/name", "--set", "model.patch_size=4", "--print-config"]) == 0
    assert 'init = "hf://owner/name"' in capsys.readouterr().out
    with pytest.raises(WeightsError, match=r"hf://nobody/nothing cannot be fetched: 404: no such model$"):
        tv.from_pretrained("hf://nobody/nothing")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"needs huggingface_hub: pip install 'tinyvit\[hub\]'"):
        tv.from_pretrained("hf://owner/name")
