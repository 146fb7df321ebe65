"""Facebook's DINO and DINOv2, as their own ``.pth`` files.

Source: https://github.com/facebookresearch/dino (vision_transformer.py) and https://github.com/facebookresearch/dinov2
(dinov2/models/vision_transformer.py). LayerNorm's eps is 1e-6, GELU the erf form. For images of another size, positions
are resampled bicubically, stepping as if the new grid were a tenth of a patch larger; in DINOv2 with registers without
that offset, but antialiased.
"""

from __future__ import annotations

from tinyvit.pretrained.families.contents import Anatomy, Contents, Description, Family, Table
from tinyvit.pretrained.families.timm import OLDER, OURS
from tinyvit.pretrained.preprocessing import IMAGENET_256

DINOV2_NAMES = """
reg_token                register_tokens
blocks.{i}.mlp.fc1.*     blocks.{i}.mlp.w12.*
blocks.{i}.mlp.fc2.*     blocks.{i}.mlp.w3.*
"""
HEADS = {r"(dino_|ibot_)?head\.": "the projection head of the training"}


def _dino(contents: Contents, anatomy: Anatomy) -> Description:
    config = {"eps": 1e-6, "resampling": "bicubic_offset", "pool": "cls"}
    return Description(config, IMAGENET_256, (), {"family": "names as timm's, but a file of PyTorch's without a head"})


def _dinov2(contents: Contents, anatomy: Anatomy) -> Description:
    resampling = "bicubic_antialias" if anatomy.config["register_tokens"] else "bicubic_offset"
    return Description({"eps": 1e-6, "resampling": resampling, "pool": "cls"}, IMAGENET_256)


DINO = Family(
    "dino",
    "Facebook's DINO",
    Table(OURS.replace("head.*                   head.*\n", "")),
    lambda contents: (
        contents.weights.container == "pytorch"
        and contents.has(r"blocks\.0\.attn\.qkv\.weight")
        and not contents.has(r"head\.(weight|bias)$|head_dist\.|fc_norm\.|blocks\.0\.(gamma_|ls)|dist_token|reg_token")
    ),
    _dino,
    ignored=HEADS,
)
DINOV2 = Family(
    "dinov2",
    "Facebook's DINOv2",
    Table(OURS.replace("head.*                   head.*\n", "").rstrip() + DINOV2_NAMES.rstrip() + OLDER),
    lambda contents: contents.has(r"blocks\.0\.attn\.qkv\.weight") and contents.has("mask_token|register_tokens"),
    _dinov2,
    ignored={"mask_token": "for masked training only", **HEADS},
)
