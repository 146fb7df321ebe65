"""The weights that people already have: opened without running them, a ViT made of them, its features, and probes."""

from tinyvit.pretrained.containers import Weights, WeightsError, nonfinite, open_weights, read_settings
from tinyvit.pretrained.features import (
    FeatureError,
    extract_features,
    features_of_files,
    features_of_split,
    image_files,
    prepare,
    write_features,
)
from tinyvit.pretrained.loading import PretrainedViT, as_trained, from_pretrained
from tinyvit.pretrained.own import is_foreign
from tinyvit.pretrained.preprocessing import PREPROCESSING, Preprocessing
from tinyvit.pretrained.probes import LinearProbe, ProbeReport, knn, linear_probe, nearest, probe_dataset
from tinyvit.pretrained.report import Report
from tinyvit.pretrained.resizing import adapt_channels, resize_patches, resize_positions
from tinyvit.pretrained.saving import LAYOUTS, save_pretrained
from tinyvit.pretrained.starting import initial

__all__ = [
    "LAYOUTS",
    "PREPROCESSING",
    "FeatureError",
    "LinearProbe",
    "Preprocessing",
    "PretrainedViT",
    "ProbeReport",
    "Report",
    "Weights",
    "WeightsError",
    "adapt_channels",
    "as_trained",
    "extract_features",
    "features_of_files",
    "features_of_split",
    "from_pretrained",
    "image_files",
    "initial",
    "is_foreign",
    "knn",
    "linear_probe",
    "nearest",
    "nonfinite",
    "open_weights",
    "prepare",
    "probe_dataset",
    "read_settings",
    "resize_patches",
    "resize_positions",
    "save_pretrained",
    "write_features",
]
