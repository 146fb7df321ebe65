"""The weights that people already have: files opened without running them, and made a ViT of."""

from tinyvit.pretrained.containers import Weights, WeightsError, nonfinite, open_weights, read_settings
from tinyvit.pretrained.loading import PretrainedViT, from_pretrained
from tinyvit.pretrained.preprocessing import PREPROCESSING, Preprocessing
from tinyvit.pretrained.report import Report
from tinyvit.pretrained.resizing import adapt_channels, resize_patches, resize_positions
from tinyvit.pretrained.saving import save_pretrained
from tinyvit.pretrained.starting import initial

__all__ = [
    "PREPROCESSING",
    "Preprocessing",
    "PretrainedViT",
    "Report",
    "Weights",
    "WeightsError",
    "adapt_channels",
    "from_pretrained",
    "initial",
    "nonfinite",
    "open_weights",
    "read_settings",
    "resize_patches",
    "resize_positions",
    "save_pretrained",
]
