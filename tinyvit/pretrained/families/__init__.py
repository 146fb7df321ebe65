"""The families of weights that are known, each a table of names and what its arrays do not show."""

from __future__ import annotations

from tinyvit.pretrained.containers import WeightsError
from tinyvit.pretrained.families.contents import Contents, Family, anatomy
from tinyvit.pretrained.families.facebook import DINO, DINOV2
from tinyvit.pretrained.families.google import BIG_VISION, VIT_JAX
from tinyvit.pretrained.families.huggingface import HF_DINOV2, HF_VIT
from tinyvit.pretrained.families.refused import refuse_others
from tinyvit.pretrained.families.timm import TIMM
from tinyvit.pretrained.families.unwrapping import unwrap

__all__ = ["FAMILIES", "anatomy", "family_of", "unwrap"]

FAMILIES = {f.name: f for f in (VIT_JAX, BIG_VISION, HF_DINOV2, HF_VIT, DINOV2, DINO, TIMM)}
"""By name; the first that recognises a file is taken."""


def family_of(contents: Contents, name: str | None = None) -> Family:
    """Return the family that a file belongs to, or the one that is named.

    Raises:
        WeightsError: nobody knows it, or it is known and refused.
    """
    if name is not None:
        if name not in FAMILIES:
            raise WeightsError(f"unknown family {name!r}; the known ones are {', '.join(FAMILIES)}")
        return FAMILIES[name]
    refuse_others(contents)
    for family in FAMILIES.values():
        if family.recognises(contents):
            return family
    shown = ", ".join(list(contents.arrays)[:4])
    titles = ", ".join(family.title for family in FAMILIES.values())
    raise WeightsError(
        f"{contents.weights.path} holds {len(contents.arrays)} arrays ({shown}, …) and no ViT that tinyvit knows; "
        f"known are {titles}"
    )
