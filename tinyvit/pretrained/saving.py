"""Models written as timm and Hugging Face's transformers open them: ``model.safetensors`` and its settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.pretrained.containers import WeightsError
from tinyvit.pretrained.families.contents import Table, ratio_for
from tinyvit.pretrained.families.huggingface import DINOV2_NAMES, EMBEDDINGS, VIT_NAMES
from tinyvit.pretrained.preprocessing import CROP_MODES, HF_VIT, PILLOW, TIMM, Preprocessing
from tinyvit.training.checkpoint import safetensors_pieces, write_atomically
from tinyvit.vit import ViT, ViTConfig

Files = tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]  # arrays, config.json, preprocessor_config.json


def save_pretrained(
    model: ViT,
    folder: str | Path,
    layout: str = "timm",
    *,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Write a model into a folder that another library opens, and `from_pretrained` too.

    "timm": ``timm.create_model("local-dir:FOLDER", pretrained=True)``. "huggingface":
    ``AutoModelForImageClassification.from_pretrained("FOLDER")``, or ``AutoModel`` without a head (a ViT, a DeiT, or a
    Dinov2 with or without registers, as the model's parts ask for). A file is written whole or not at all, the weights
    last. Neither keeps dropout rates, nor how positions are resampled: each library has its own way.

    Args:
        model: of which the weights are saved in float32.
        folder: made if need be.
        layout: "timm" or "huggingface".
        preprocessing: of the images; that of a `PretrainedViT` if None, else the layout's usual one.
        classes: a name for each class; those of a `PretrainedViT` if none are given.

    Raises:
        WeightsError: the layout is unknown, or has no place for a part of the model or a step of its preprocessing,
            which is named; or there is not a name for each class.
        OSError: the folder cannot be written.

    >>> import tempfile, tinyvit as tv
    >>> model = tv.ViT(tv.ViTConfig(image_size=32, patch_size=8, dim=64, depth=1, num_heads=1, num_classes=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(model, folder, "huggingface", classes=("cat", "dog"))
    ...     again = tv.from_pretrained(folder)
    >>> again.classes, again.config.resampling
    (('cat', 'dog'), 'bicubic')
    """
    if layout not in LAYOUTS:
        raise WeightsError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    c = model.config
    usual = DEFAULTS[layout].for_images((c.height, c.width), c.channels)
    preprocessing = preprocessing or getattr(model, "preprocessing", None) or usual
    classes = tuple(classes) or getattr(model, "classes", ())
    if classes and len(classes) != c.num_classes:
        raise WeightsError(f"there are {len(classes)} names for {c.num_classes} classes; give one for each, or none")
    arrays, config, preprocessor = LAYOUTS[layout](model, preprocessing, classes)
    folder = Path(folder)
    for name, settings in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        if settings:
            write_atomically(folder / name, [json.dumps(settings, indent=2).encode()])
    ready = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    write_atomically(folder / "model.safetensors", safetensors_pieces(ready, {"format": "pt"}))


def _refuse(layout: str, *problems: tuple[bool, str]) -> None:
    wrong = [what for there, what in problems if there]
    if wrong:
        raise WeightsError(f"{layout} has no place for {', '.join(wrong)}")


# ---------------------------------------------------------------------------------------------------------------- timm


def _timm(model: ViT, preprocessing: Preprocessing, classes: Sequence[str]) -> Files:
    """The arrays' names are timm's already; hyper-parameters go into model_args."""
    c = model.config
    _refuse(
        "timm",
        (c.pool == "cls_mean", "pool 'cls_mean'"),
        (c.eps != 1e-6, f"LayerNorm's eps {c.eps:g} (timm's is 1e-06)"),
        (c.pre_logits > 0, "pre_logits"),
        (c.distillation_token and not c.class_position, "a distillation token without a position"),
        (c.distillation_token and c.register_tokens > 0, "a distillation token beside registers"),
        (preprocessing.resize == "none", "images that are not resized"),
    )
    arrays = _with_positions(model)
    apart = not (c.class_token and c.class_position)  # whether the patches alone have positions
    if c.register_tokens and not apart:  # timm's registers have positions where the class token has one
        arrays["cls_token"] = arrays["cls_token"] + arrays["pos_embed"][:, :1]
        arrays["pos_embed"], apart = arrays["pos_embed"][:, 1:], True
    glu, pool = c.activation == "swiglu", "token" if c.pool == "cls" else "avg"
    args: dict[str, Any] = {
        "img_size": [c.height, c.width],
        "patch_size": c.patch_size,
        "in_chans": c.channels,
        "num_classes": c.num_classes,
        "global_pool": pool,
        "embed_dim": c.dim,
        "depth": c.depth,
        "num_heads": c.num_heads,
        "mlp_ratio": ratio_for(c.dim, c.mlp_hidden * (2 if glu else 1)),
        "qkv_bias": c.qkv_bias,
        "init_values": c.layer_scale or None,
        "class_token": c.class_token,
        "no_embed_class": apart,
        "reg_tokens": c.register_tokens,
        "fc_norm": c.pool_norm,
    }
    if not glu:
        args["act_layer"] = TIMM_ACTIVATIONS[c.activation]
    cfg = {
        "input_size": [c.channels, c.height, c.width],
        "interpolation": preprocessing.interpolation if preprocessing.interpolation in PILLOW else "bilinear",
        "crop_pct": preprocessing.crop_pct or _share(preprocessing),
        "crop_mode": TIMM_CROP_MODES[preprocessing.resize],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": c.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if c.distillation_token else "head",
    }
    config = {
        "architecture": TIMM_ARCHITECTURES["distilled" if c.distillation_token else "swiglu" if glu else "plain"],
        "num_classes": c.num_classes,
        "num_features": c.dim,
        "global_pool": pool,
        "model_args": args,
        "pretrained_cfg": cfg,
        **({"label_names": list(classes)} if classes else {}),
    }
    return arrays, config, {}


TIMM_ARCHITECTURES = {  # which model_args make whatever size it is
    "plain": "vit_base_patch16_224",
    "distilled": "deit_base_distilled_patch16_224",
    "swiglu": "vit_giant_patch14_dinov2",
}
TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "gelu_quick": "quick_gelu", "relu": "relu"}


TIMM_CROP_MODES = {resize: mode for mode, resize in CROP_MODES.items()}


def _share(preprocessing: Preprocessing) -> float:
    """What is left of the resized image's height, so that timm divides by it, rounds down, and has that height."""
    assert preprocessing.resize_to is not None
    size, resized = preprocessing.size[0], preprocessing.resize_to[0]
    share = size / resized
    return share if int(size / share) == resized else float(np.nextafter(share, 0))


def _with_positions(model: ViT) -> dict[str, np.ndarray]:
    """The model's arrays, fixed sines and cosines among them."""
    arrays = model.state_dict()
    if model.config.position == "sincos":
        arrays["pos_embed"] = np.array(model.pos_embed.table.numpy())
    return arrays


# -------------------------------------------------------------------------------------------------------- Hugging Face


def _huggingface(model: ViT, preprocessing: Preprocessing, classes: Sequence[str]) -> Files:
    c = model.config
    scaled, glu = bool(c.layer_scale), c.activation == "swiglu"
    dinov2 = scaled or c.register_tokens > 0 or c.pool == "cls_mean" or glu
    _refuse(
        "Hugging Face's Dinov2" if dinov2 else "Hugging Face's ViT",
        (not c.class_token, "a model without a class token"),
        (c.pool == "mean" or c.pool_norm, "pooling by the mean, or before the last norm"),
        (c.pre_logits > 0, "pre_logits"),
        (dinov2 and not scaled, "registers, swiglu or pool 'cls_mean' without LayerScale"),
        (dinov2 and c.distillation_token, "a distillation token beside LayerScale"),
        (dinov2 and c.num_classes > 0 and c.pool != "cls_mean", "a head on the class token alone beside LayerScale"),
        (dinov2 and c.height != c.width, "images that are no squares"),
        (dinov2 and _dinov2_ratio(c) is None, f"an FFN of {c.mlp_hidden}"),
        (c.distillation_token and not c.class_position, "a distillation token without a position"),
        (preprocessing.interpolation not in PILLOW, f"the interpolation {preprocessing.interpolation!r}"),
        (not _huggingface_can(preprocessing), f"images {preprocessing}"),
    )
    arrays = _with_positions(model)
    if not c.class_position:  # there, the class token always has one
        arrays["pos_embed"] = np.concatenate([np.zeros((1, 1, c.dim), np.float32), arrays["pos_embed"]], axis=1)
    prefix, config = _dinov2_config(c) if dinov2 else _vit_config(c)
    made: dict[str, np.ndarray] = {}
    for ours, theirs in Table(EMBEDDINGS.rstrip() + (DINOV2_NAMES if dinov2 else VIT_NAMES)).names(c.depth):
        if ours in arrays and _is_the_name(theirs[0], c):
            parts = np.split(arrays[ours], len(theirs))
            inside = "" if "classifier" in theirs[0] or not c.num_classes else prefix
            made |= {f"{inside}{name}": part for name, part in zip(theirs, parts, strict=True)}
    if dinov2:
        made[f"{prefix if c.num_classes else ''}embeddings.mask_token"] = np.zeros((1, c.dim), np.float32)
    named = classes or [f"LABEL_{k}" for k in range(c.num_classes)]
    config |= {
        "id2label": {str(k): name for k, name in enumerate(named)},
        "label2id": {name: k for k, name in enumerate(named)},
        "hidden_size": c.dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "hidden_act": HUGGINGFACE_ACTIVATIONS[c.activation],
        "layer_norm_eps": c.eps,
        "image_size": c.height if c.height == c.width else [c.height, c.width],
        "patch_size": c.patch_size,
        "num_channels": c.channels,
        "qkv_bias": c.qkv_bias,
    }
    return made, config, _huggingface_images(preprocessing)


HUGGINGFACE_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "gelu_quick": "quick_gelu", "relu": "relu",
                           "swiglu": "gelu"}  # fmt: skip


def _is_the_name(theirs: str, c: ViTConfig) -> bool:
    """Of several names for an array, the one that a model of this kind has."""
    if "classifier." in theirs:
        return ("cls_" in theirs or "distillation_" in theirs) == c.distillation_token
    if ".mlp." in theirs:
        return ("weights_" in theirs) == (c.activation == "swiglu")
    return True


def _vit_config(c: ViTConfig) -> tuple[str, dict[str, Any]]:
    name, kind = ("DeiT", "deit") if c.distillation_token else ("ViT", "vit")
    head = "ForImageClassificationWithTeacher" if c.distillation_token else "ForImageClassification"
    config = {
        "architectures": [f"{name}{head if c.num_classes else 'Model'}"],
        "model_type": kind,
        "intermediate_size": c.mlp_hidden,
    }
    return f"{kind}.", config


def _dinov2_config(c: ViTConfig) -> tuple[str, dict[str, Any]]:
    name, kind = ("Dinov2WithRegisters", "dinov2_with_registers") if c.register_tokens else ("Dinov2", "dinov2")
    config = {
        "architectures": [f"{name}{'ForImageClassification' if c.num_classes else 'Model'}"],
        "model_type": kind,
        "mlp_ratio": _dinov2_ratio(c),
        "use_swiglu_ffn": c.activation == "swiglu",
        "layerscale_value": c.layer_scale,
        **({"num_register_tokens": c.register_tokens} if c.register_tokens else {}),
    }
    return f"{kind}.", config


def _dinov2_ratio(c: ViTConfig) -> int | None:
    """The whole number from which Dinov2 works out the FFN's width; with swiglu, two thirds of it, up to eights."""
    for ratio in range(1, 17):
        hidden = c.dim * ratio
        if (hidden * 2 // 3 + 7) // 8 * 8 == c.mlp_hidden if c.activation == "swiglu" else hidden == c.mlp_hidden:
            return ratio
    return None


def _huggingface_can(preprocessing: Preprocessing) -> bool:
    """Whether images are squashed to the model's size, or cut out of the middle at a length of their shortest side."""
    assert preprocessing.resize_to is not None
    if preprocessing.resize == "squash":
        return preprocessing.resize_to == preprocessing.size
    return preprocessing.resize == "shortest" and len(set(preprocessing.resize_to)) == 1


def _huggingface_images(preprocessing: Preprocessing) -> dict[str, Any]:
    assert preprocessing.resize_to is not None
    squashed = preprocessing.resize == "squash"
    height, width = preprocessing.size
    sizes: dict[str, Any] = {"size": {"height": height, "width": width}}
    if not squashed:
        crop = {"height": height, "width": width}
        sizes = {"size": {"shortest_edge": preprocessing.resize_to[0]}, "do_center_crop": True, "crop_size": crop}
    return {
        "image_processor_type": "ViTImageProcessor" if squashed else "BitImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "resample": PILLOW.index(preprocessing.interpolation),
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        **sizes,
    }


DEFAULTS = {"timm": TIMM, "huggingface": HF_VIT}
LAYOUTS: dict[str, Callable[[ViT, Preprocessing, Sequence[str]], Files]] = {
    "timm": _timm,
    "huggingface": _huggingface,
}
