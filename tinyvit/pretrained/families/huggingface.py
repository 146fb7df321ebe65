"""Hugging Face's ViT, DeiT, DINO, Dinov2 and Dinov2 with registers, as the library transformers writes them.

Source: https://github.com/huggingface/transformers (models/vit, deit, dinov2, dinov2_with_registers). GELU is the erf
form unless config.json says otherwise; LayerNorm's eps is that of config.json, else 1e-12 for ViT and DeiT and 1e-6 for
Dinov2. For images of another size, positions are resampled bicubically; antialiased in the model with registers alone.
"""

from __future__ import annotations

from typing import Any

from tinyvit.pretrained.containers import WeightsError
from tinyvit.pretrained.families.contents import Anatomy, Contents, Description, Family, Table
from tinyvit.pretrained.preprocessing import HF_DINOV2 as HF_DINOV2_PREPROCESSING
from tinyvit.pretrained.preprocessing import HF_VIT as HF_VIT_PREPROCESSING
from tinyvit.pretrained.preprocessing import IMAGENET_256, Preprocessing

EMBEDDINGS = """
cls_token               embeddings.cls_token
pos_embed               embeddings.position_embeddings
patch_embed.proj.*      embeddings.patch_embeddings.projection.*
blocks.{i}.attn.qkv.*   encoder.layer.{i}.attention.attention.{query,key,value}.*
blocks.{i}.attn.proj.*  encoder.layer.{i}.attention.output.dense.*
norm.*                  layernorm.*
head.*                  classifier.*
"""
VIT_NAMES = """
dist_token              embeddings.distillation_token
blocks.{i}.norm1.*      encoder.layer.{i}.layernorm_before.*
blocks.{i}.norm2.*      encoder.layer.{i}.layernorm_after.*
blocks.{i}.mlp.fc1.*    encoder.layer.{i}.intermediate.dense.*
blocks.{i}.mlp.fc2.*    encoder.layer.{i}.output.dense.*
head.*                  cls_classifier.*
head_dist.*             distillation_classifier.*
"""
DINOV2_NAMES = """
reg_token               embeddings.register_tokens
blocks.{i}.norm1.*      encoder.layer.{i}.norm1.*
blocks.{i}.ls1.gamma    encoder.layer.{i}.layer_scale1.lambda1
blocks.{i}.norm2.*      encoder.layer.{i}.norm2.*
blocks.{i}.ls2.gamma    encoder.layer.{i}.layer_scale2.lambda1
blocks.{i}.mlp.fc1.*    encoder.layer.{i}.mlp.fc1.*
blocks.{i}.mlp.fc2.*    encoder.layer.{i}.mlp.fc2.*
blocks.{i}.mlp.fc1.*    encoder.layer.{i}.mlp.weights_in.*
blocks.{i}.mlp.fc2.*    encoder.layer.{i}.mlp.weights_out.*
"""
IGNORED = {
    r"embeddings\.mask_token": "for masked training only",
    r"pooler\.dense\.": "a tanh layer that only the library's pooler_output reads",
    r"embeddings\.position_ids": "numbers from 0 on",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "gelu_quick",
               "relu": "relu"}  # fmt: skip


def _described(
    contents: Contents, anatomy: Anatomy, eps: float, **family: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields that all of them share, and those that were guessed."""
    settings, guessed = contents.settings, {}
    config: dict[str, Any] = {"eps": settings.get("layer_norm_eps", eps), "resampling": "bicubic", **family}
    if anatomy.config.get("activation") != "swiglu":
        name = settings.get("hidden_act", "gelu")
        if name not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise WeightsError(f"{contents.weights.path}: its hidden_act is {name!r}; known are {known}")
        config["activation"] = ACTIVATIONS[name]
    for ours, theirs in (
        ("num_heads", "num_attention_heads"),
        ("image_size", "image_size"),
        ("layer_scale", "layerscale_value"),
    ):
        if theirs in settings:
            config[ours] = settings[theirs]
    if not settings:
        guessed = {"activation": "the library's default", "eps": "the library's default"}
    return config, guessed


def _preprocessed(contents: Contents, default: Preprocessing, guessed: dict[str, str]) -> Preprocessing:
    if contents.preprocessor:
        return Preprocessing.from_huggingface(contents.preprocessor)
    guessed["preprocessing"] = "the family's usual one, for there is no preprocessor_config.json"
    return default


def _classes(settings: dict[str, Any]) -> tuple[str, ...]:
    """The names in id2label, unless they only number the classes."""
    names = settings.get("id2label") or {}
    if sorted(names) != sorted(map(str, range(len(names)))):
        return ()
    ordered = tuple(str(names[str(k)]) for k in range(len(names)))
    return () if all(name == f"LABEL_{k}" for k, name in enumerate(ordered)) else ordered


def _vit(contents: Contents, anatomy: Anatomy) -> Description:
    config, guessed = _described(contents, anatomy, 1e-12, pool="cls")
    usual = IMAGENET_256 if anatomy.config["distillation_token"] else HF_VIT_PREPROCESSING
    return Description(config, _preprocessed(contents, usual, guessed), _classes(contents.settings), guessed)


def _dinov2(contents: Contents, anatomy: Anatomy) -> Description:
    head = contents.has(r"classifier\.")
    config, guessed = _described(contents, anatomy, 1e-6, pool="cls_mean" if head else "cls")
    if anatomy.config["register_tokens"]:
        config["resampling"] = "bicubic_antialias"
    return Description(
        config, _preprocessed(contents, HF_DINOV2_PREPROCESSING, guessed), _classes(contents.settings), guessed
    )


HF_VIT = Family(
    "hf_vit",
    "Hugging Face's ViT",
    Table(EMBEDDINGS.rstrip() + VIT_NAMES),
    lambda contents: contents.has(r"encoder\.layer\.0\.layernorm_before\."),
    _vit,
    ignored=IGNORED,
)
HF_DINOV2 = Family(
    "hf_dinov2",
    "Hugging Face's Dinov2",
    Table(EMBEDDINGS.rstrip() + DINOV2_NAMES),
    lambda contents: contents.has(r"encoder\.layer\.0\.layer_scale1\.lambda1"),
    _dinov2,
    ignored=IGNORED,
)
