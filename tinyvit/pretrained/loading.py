"""From a file of weights to a ViT, with a report of what was done."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.pretrained.containers import WeightsError, open_weights
from tinyvit.pretrained.families import anatomy, family_of, unwrap
from tinyvit.pretrained.families.contents import Contents, Family, Named
from tinyvit.pretrained.fitting import Fitting
from tinyvit.pretrained.hub import download, is_on_hub
from tinyvit.pretrained.own import is_own, open_own
from tinyvit.pretrained.preprocessing import Preprocessing
from tinyvit.pretrained.report import Report
from tinyvit.training import Config, DataConfig, TrainedModel
from tinyvit.vit import ViT, ViTConfig

FREE = (  # fields of the config that a caller may set: no array's shape depends on them
    "num_heads", "activation", "eps", "resampling", "dropout", "attention_dropout", "drop_path", "checkpoint",
)  # fmt: skip


class PretrainedViT(ViT):
    """A ViT with weights that others trained, in evaluation mode; see `from_pretrained`.

    Attributes:
        report: what was done to make it: ``print(model.report)``.
        preprocessing: what its images go through: ``model(model.preprocessing("cat.jpg"))``.
        classes: the names of its classes, or () where the file has none.
    """

    report: Report
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config, _Blank())  # type: ignore[arg-type]
        self.eval()


class _Blank:
    """In place of a random generator where no number that it draws is kept."""

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)


def from_pretrained(
    path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    family: str | None = None,
    device: str = "cpu",
    **settings: Any,
) -> PretrainedViT:
    """Return a ViT with the weights of a file or folder that somebody else made, or of a run of tinyvit.

    It opens Google's ``.npz`` (vit_jax, big_vision), files of timm, DeiT, DeiT-III, DINO and DINOv2, and folders of
    Hugging Face's ViT, DeiT, DINO and Dinov2 with and without registers, from safetensors, ``.npz`` and what
    `torch.save` wrote, and runs no code in them. What the arrays do not show (the form of GELU, LayerNorm's eps, how
    positions are resampled, the preprocessing) is a fact of the family and stands in the model's config; what had to
    be guessed is in its report.

    Args:
        path: a file, a folder with ``config.json``, or ``hf://owner/name`` (with ``@revision``), which needs the
            extra `hub`.
        image_size: H = W, or (H, W), in pixels, of the images to come; positions are resampled, as the family does it.
        patch_size: another P, the patches' kernel resized so that products are kept (FlexiViT's PI-resize).
        channels: another C, the kernel summed or repeated (see `adapt_channels`).
        num_classes: where K is another, a new head, zero at first, in place of the file's; 0 for none.
        family: one of `tinyvit.pretrained.families.FAMILIES`, where names alone do not tell.
        device: "cpu", "gpu" or "auto".
        **settings: other values for num_heads, activation, eps, resampling, dropout, attention_dropout, drop_path or
            checkpoint of `ViTConfig`.

    Raises:
        WeightsError: the file cannot be opened, is of a kind that tinyvit does not have (which is named), or lacks
            arrays, has unknown ones, or numbers that are not finite.
        ValueError: the sizes make no ViT.
        TypeError: a setting that is none.

    >>> import tempfile
    >>> from tinyvit.pretrained import save_pretrained
    >>> config = ViTConfig(image_size=32, patch_size=8, dim=64, depth=1, num_heads=1, num_classes=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(ViT(config), folder)
    ...     model = from_pretrained(folder, image_size=(48, 32), num_classes=10)
    >>> model(np.zeros((2, 3, 48, 32), np.float32)).shape
    (2, 10)
    >>> model.report.changed
    {'pos_embed': 'resampled from 4×4 to 6×4 patches (bicubic_antialias)'}
    """
    wrong = [name for name in settings if name not in FREE]
    if wrong:
        raise TypeError(f"from_pretrained takes no {', '.join(wrong)}; what may be set is {', '.join(FREE)}")
    contents, kind = _opened(download(path) if is_on_hub(path) else path, family)
    weights, named = contents.weights, Named(contents, kind)
    if isinstance(image_size, tuple) and len(set(image_size)) == 1:
        image_size = image_size[0]
    asked: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "channels": channels, **settings}
    asked = {name: value for name, value in {**asked, "num_classes": num_classes}.items() if value is not None}
    try:
        shapes = anatomy(weights.path, named)
        description = kind.describe(contents, shapes)
        fitting = Fitting(weights.path, named, shapes, description, asked)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # of shapes and settings that nobody foresaw
        raise WeightsError(f"{weights.path} has arrays or settings of a form that no ViT has: {error}") from error
    for name in (*asked, *(["family"] if family else [])):  # what the caller says is no guess
        fitting.guessed.pop(name, None)
    fitting.check_size(sum(math.prod(weights.shape(name)) for name in weights))
    config = fitting.config
    model = PretrainedViT(config)
    own = dict(model.named_parameters())
    for name, array in fitting.arrays(own).items():
        own[name].rebind(_whole(array))  # not copied into place, which would take the memory once more
    model.to(device=device)
    model.preprocessing = description.preprocessing.for_images((config.height, config.width), config.channels)
    model.classes = description.classes if len(description.classes) == config.num_classes else ()
    model.report = _report(str(path), contents, kind, named, fitting, model.preprocessing)
    return model


def _report(
    source: str, contents: Contents, kind: Family, named: Named, fitting: Fitting, preprocessing: Preprocessing
) -> Report:
    weights, origin = contents.weights, contents.origin
    ignored = {**named.ignored, **fitting.ignored}
    return Report(
        source,
        kind.title,
        weights.container,
        tuple(sorted({weights.dtype(name) for name in weights})),
        fitting.config,
        preprocessing,
        mapped={ours: tuple(origin[name] for name in theirs) for ours, theirs in fitting.used.items()},
        ignored={origin.get(name, name): why for name, why in ignored.items()},
        missing=fitting.missing,
        changed=fitting.changed,
        guessed=fitting.guessed,
        asked=fitting.asked,
    )


def _whole(array: np.ndarray) -> np.ndarray:
    """In float32 and in order; a copy where it is a part of something larger, which it would keep in memory."""
    alone = array.flags.owndata and array.flags.c_contiguous and array.dtype == np.float32
    return array if alone else np.array(array, np.float32, order="C")


def as_trained(model: PretrainedViT) -> TrainedModel:
    """Return a model of others as one that was trained here: with its normalisation, and numbers for nameless classes.

    Raises:
        WeightsError: it has no head.
    """
    if not model.config.num_classes:
        raise WeightsError(f"{model.report.source} has no head, and so no classes: look at its features instead")
    classes = model.classes or tuple(map(str, range(model.config.num_classes)))
    data = DataConfig(mean=model.preprocessing.mean, std=model.preprocessing.std)
    return TrainedModel(model, Config(model.config, data), classes, Path(model.report.source))


def _opened(path: str | Path, family: str | None) -> tuple[Contents, Family]:
    if family is None and is_own(path):
        weights, kind = open_own(path)
        return unwrap(weights), kind
    contents = unwrap(open_weights(path))
    return contents, family_of(contents, family)
