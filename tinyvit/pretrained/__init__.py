"""The weights that people already have: files opened without running them, and tables fitted to another image size."""

from tinyvit.pretrained.containers import Weights, WeightsError, nonfinite, open_weights, read_settings
from tinyvit.pretrained.resizing import adapt_channels, resize_patches, resize_positions

__all__ = [
    "Weights",
    "WeightsError",
    "adapt_channels",
    "nonfinite",
    "open_weights",
    "read_settings",
    "resize_patches",
    "resize_positions",
]
