"""timm's files, and those of DeiT and DeiT-III, whose names are tinyvit's own.

Source: https://github.com/huggingface/pytorch-image-models (timm/models/vision_transformer.py, deit.py) and
https://github.com/facebookresearch/deit. LayerNorm's eps is 1e-6, GELU the erf form unless config.json
says otherwise; for images of another size, positions are resampled bicubically, antialiased.
"""

from __future__ import annotations

from typing import Any

from tinyvit.pretrained.containers import WeightsError
from tinyvit.pretrained.families.contents import Anatomy, Contents, Description, Family, Table
from tinyvit.pretrained.preprocessing import IMAGENET_256, Preprocessing
from tinyvit.pretrained.preprocessing import TIMM as TIMM_PREPROCESSING

OURS = """
cls_token                cls_token
dist_token               dist_token
reg_token                reg_token
pos_embed                pos_embed
patch_embed.proj.*       patch_embed.proj.*
blocks.{i}.norm1.*       blocks.{i}.norm1.*
blocks.{i}.attn.qkv.*    blocks.{i}.attn.qkv.*
blocks.{i}.attn.proj.*   blocks.{i}.attn.proj.*
blocks.{i}.ls1.gamma     blocks.{i}.ls1.gamma
blocks.{i}.norm2.*       blocks.{i}.norm2.*
blocks.{i}.mlp.fc1.*     blocks.{i}.mlp.fc1.*
blocks.{i}.mlp.fc2.*     blocks.{i}.mlp.fc2.*
blocks.{i}.ls2.gamma     blocks.{i}.ls2.gamma
norm.*                   norm.*
fc_norm.*                fc_norm.*
pre_logits.*             pre_logits.*
head.*                   head.*
head_dist.*              head_dist.*
"""
OLDER = """
blocks.{i}.ls1.gamma     blocks.{i}.gamma_1
blocks.{i}.ls2.gamma     blocks.{i}.gamma_2
pre_logits.*             pre_logits.fc.*
"""
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_erf": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "quickgelu": "gelu_quick",
    "relu": "relu",
}
POOLS = {"token": "cls", "avg": "mean"}
KNOWN_ARGS = {  # of timm's VisionTransformer, and those that change nothing in evaluation
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "qkv_bias", "init_values", "class_token", "no_embed_class", "reg_tokens", "fc_norm", "act_layer", "weight_init",
    "fix_init", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
    "dynamic_img_size", "dynamic_img_pad", "mlp_layer", "pos_embed",
}  # fmt: skip
NOT_SO = {"qk_norm": False, "pre_norm": False, "final_norm": True, "pool_include_prefix": False, "proj_bias": True,
          "scale_attn_norm": False, "scale_mlp_norm": False}  # fmt: skip


def _describe(contents: Contents, anatomy: Anatomy) -> Description:
    settings = contents.settings
    args = settings.get("model_args") or {}
    config: dict[str, Any] = {"eps": 1e-6, "resampling": "bicubic_antialias", **_pooling(contents, anatomy)}
    guessed: dict[str, str] = {}
    _check_arguments(contents, args)
    for ours, theirs in (("num_heads", "num_heads"), ("layer_scale", "init_values")):
        if args.get(theirs):
            config[ours] = args[theirs]
    if anatomy.config.get("activation") != "swiglu":
        config["activation"] = _activation(contents, args)
    if "architecture" not in settings:
        guessed |= {"activation": "timm's models have it", "eps": "timm's models have it"}
    size = args.get("img_size") or (settings.get("pretrained_cfg") or {}).get("input_size", [])[1:]
    if size:
        config["image_size"] = size if isinstance(size, int) else tuple(size)
    preprocessing, why = _preprocessing(contents)
    if why:
        guessed["preprocessing"] = why
    return Description(config, preprocessing, _classes(settings), guessed)


def _check_arguments(contents: Contents, args: dict[str, Any]) -> None:
    for name, value in args.items():
        if name in NOT_SO and value in (NOT_SO[name], None):
            continue
        if name not in KNOWN_ARGS:
            raise WeightsError(f"{contents.weights.path}: a ViT with {name} = {value!r} is not one that tinyvit has")


def _activation(contents: Contents, args: dict[str, Any]) -> str:
    name = args.get("act_layer") or ("quick_gelu" if "quickgelu" in _architecture(contents) else "gelu")
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise WeightsError(f"{contents.weights.path}: its act_layer is {name!r}; known are {known}")
    return ACTIVATIONS[name]


def _architecture(contents: Contents) -> str:
    return str(contents.settings.get("architecture", ""))


def _pooling(contents: Contents, anatomy: Anatomy) -> dict[str, Any]:
    named = contents.settings.get("global_pool") or (contents.settings.get("model_args") or {}).get("global_pool")
    if named and named not in POOLS:
        raise WeightsError(
            f"{contents.weights.path}: its global_pool is {named!r}; a ViT here pools by {' or '.join(POOLS)}"
        )
    mean = not anatomy.config["class_token"] or anatomy.config["pool_norm"]
    return {"pool": POOLS[named] if named else "mean" if mean else "cls"}


def _preprocessing(contents: Contents) -> tuple[Preprocessing, str]:
    if cfg := contents.settings.get("pretrained_cfg"):
        return Preprocessing.from_timm(cfg), ""
    if contents.has("dist_token|blocks.0.gamma_1") or any(o.startswith("model/") for o in contents.origin.values()):
        return IMAGENET_256, "DeiT's, for it is kept as DeiT is, and there is no config.json"
    return TIMM_PREPROCESSING, "timm's usual one, for there is no config.json"


def _classes(settings: dict[str, Any]) -> tuple[str, ...]:
    names = settings.get("label_names") or (settings.get("pretrained_cfg") or {}).get("label_names")
    return tuple(map(str, names)) if isinstance(names, list) else ()


TIMM = Family(
    "timm",
    "timm",
    Table(OURS.rstrip() + OLDER),
    lambda contents: contents.has(r"blocks\.0\.attn\.qkv\.weight"),
    _describe,
)
