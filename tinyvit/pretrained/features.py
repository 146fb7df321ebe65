"""What a model makes of images: its tokens after any layer and what its head reads, as plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinyvit.data import DataError, ImageFiles, Split, preprocess, read_image
from tinyvit.data.images import EXTENSIONS, in_parallel
from tinyvit.engine import Tensor
from tinyvit.pretrained.preprocessing import Preprocessing
from tinyvit.training.checkpoint import atomic_file
from tinyvit.training.evaluation import evaluating
from tinyvit.training.parallel import default_workers, map_shards, shards_for
from tinyvit.vit import ViT

BATCH = 32  # images at once, in which a base model takes some hundred megabytes
KINDS = ("class_token", "patch_tokens", "pooled", "mean")

Arrays = dict[str, np.ndarray]


class FeatureError(ValueError):
    """Features that a model does not have; the message is one sentence."""


def extract_features(
    model: ViT,
    images: Any,
    kinds: Sequence[str] = (),
    layers: Sequence[int] = (),
    batch_size: int = BATCH,
    workers: int | None = None,
) -> Arrays:
    """Return what a model makes of any number of images, computed without dropout and without a tape, in parts.

    Args:
        model: a ViT; its mode comes back afterwards.
        images: (n, C, H, W), normalised, as the model takes them; n ≥ 1.
        kinds: what to return; the first three that the model has, unless given.

            - "class_token": float32 (n, D)
            - "patch_tokens": (n, h, w, D), for h × w patches
            - "pooled": (n, D), or (n, 2D) of pool "cls_mean": what the head reads
            - "mean": (n, D), the mean of the patch tokens, whatever the head reads
        layers: encoder layers whose tokens are returned, too, each after the model's last norm (see `ViT.hidden`); −1
            is the last.
        batch_size: images at once. The results' last bits may depend on it.
        workers: threads, see `parallel_backward`. The bits do not depend on it.

    Returns:
        {kind: array} of the tokens after the last norm, and for each layer i of `layers`, counted from 0,
        {"layer_i/kind": array}. All are on the host.

    Raises:
        FeatureError: an unknown kind, no such layer, or the class token of a model that has none.
        ValueError: no images, or images that the model does not take.

    >>> import tinyvit as tv
    >>> model = tv.ViT(tv.ViTConfig(image_size=8, patch_size=4, channels=1, dim=16, depth=3, num_heads=2))
    >>> found = extract_features(model, np.zeros((5, 1, 8, 8), np.float32), layers=[1])
    >>> {name: array.shape for name, array in found.items()}
    {'class_token': (5, 16), 'patch_tokens': (5, 2, 2, 16), 'pooled': (5, 16),
     'layer_1/class_token': (5, 16), 'layer_1/patch_tokens': (5, 2, 2, 16), 'layer_1/pooled': (5, 16)}
    """
    kinds, layers = check_features(model, kinds, layers)
    batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    with evaluating(model):
        return _joined(part for batch in batches for part in _in_shards(model, batch, kinds, layers, workers))


def check_features(model: ViT, kinds: Sequence[str], layers: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the kinds, those of the model where none are given, and the layers counted from 0, each once.

    Raises:
        FeatureError: the model has no such thing.
    """
    has_class_token, depth = model.config.class_token, len(model.blocks)
    kinds = tuple(kinds) or KINDS[not has_class_token : 3]
    for kind in kinds:
        if kind not in KINDS:
            raise FeatureError(f"unknown features {kind!r}: use some of {', '.join(KINDS)}")
    if "class_token" in kinds and not has_class_token:
        raise FeatureError(
            "this model has no class token: ask for its patch tokens, their mean, or what its head reads"
        )
    if unknown := [i for i in layers if not -depth <= i < depth]:
        raise FeatureError(
            f"there is no layer {unknown[0]}: this model has {depth}, from 0 to {depth - 1}; −1 is the last"
        )
    return kinds, tuple(dict.fromkeys(i % depth for i in layers))


def _in_shards(
    model: ViT, images: Any, kinds: Sequence[str], layers: Sequence[int], workers: int | None
) -> list[Arrays]:
    def compute(part: Any) -> Arrays:
        *inner, last = model.hidden(part, [*layers, -1]) if layers else [model.features(part)]
        named = {"": last} | {f"layer_{i}/": tokens for i, tokens in zip(layers, inner, strict=True)}
        grid = tuple(side // model.config.patch_size for side in part.shape[2:])
        return {f"{name}{kind}": _kind(model, kind, named[name], grid) for name in named for kind in kinds}

    shards = shards_for(model.config, len(images), model.device)
    return map_shards(compute, images, shards=shards, workers=workers)


def _kind(model: ViT, kind: str, tokens: Tensor, grid: tuple[int, ...]) -> np.ndarray:
    """One kind of features, in memory of its own: a view would keep all tokens."""
    patches = tokens[:, model.config.num_prefix_tokens :]
    found = {
        "class_token": lambda: tokens[:, 0],
        "patch_tokens": lambda: patches.reshape(len(tokens), *grid, tokens.shape[-1]),
        "pooled": lambda: model.pooled(tokens),
        "mean": lambda: patches.mean(axis=1),
    }[kind]()
    return np.array(found.numpy(), np.float32)


def _joined(parts: Iterable[Arrays]) -> Arrays:
    several = list(parts)
    if not several:
        raise ValueError("there are no images to find features of")
    return {name: np.concatenate([part[name] for part in several]) for name in several[0]}


# -------------------------------------------------------------------------------------------------------------- images


def prepare(preprocessing: Preprocessing, images: np.ndarray) -> np.ndarray:
    """Bring images that lie in an array to what a model takes: float32 (n, C, H, W), normalised.

    The whole image is resized, by the family's filter, to the model's height and width, whatever its proportions:
    arrays hold what is to be seen, while a photograph's edges may be cut off. Grey becomes three equal channels where
    the model takes colours, and colours become grey (ITU-R 601) where it takes one channel. Images that fit already
    are only normalised.

    Args:
        preprocessing: the model's `Preprocessing`.
        images: uint8 (n, C', H', W').

    Raises:
        DataError: resizing needs Pillow, or images of 1, 3 or 4 channels.
    """
    fitting = (preprocessing.channels, *preprocessing.size)
    if images.shape[1:] == fitting:
        return preprocess(images, preprocessing.mean, preprocessing.std)
    p = preprocessing
    whole = Preprocessing(p.size, "squash", p.size, p.interpolation, p.mean, p.std, p.channels, p.convention)
    return whole(list(images.transpose(0, 2, 3, 1)))


def image_files(places: Sequence[str | Path]) -> list[Path]:
    """Return the files, and of folders all pictures in them and below, sorted; what is hidden is passed over.

    Raises:
        DataError: a folder holds no pictures.
    """
    found = []
    for place in map(Path, places):
        inside = sorted(path for path in place.rglob("*") if _is_picture(path.relative_to(place)) and path.is_file())
        if place.is_dir() and not inside:
            raise DataError(f"{place} holds no pictures ({', '.join(EXTENSIONS)}): give files, or a folder of them")
        found += inside if place.is_dir() else [place]
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in path.parts)


def features_of_files(
    model: ViT,
    preprocessing: Preprocessing,
    paths: Sequence[Path],
    kinds: Sequence[str] = (),
    layers: Sequence[int] = (),
    batch_size: int = BATCH,
    workers: int | None = None,
    on_images: Callable[[int], Any] = lambda n: None,
) -> tuple[Arrays, list[DataError]]:
    """Return the features of image files, and what is wrong with the files that were skipped.

    Args:
        model, kinds, layers, workers: as in `extract_features`.
        preprocessing: the model's `Preprocessing`.
        paths: pictures, or .npy arrays of uint8 in the model's size.
        batch_size: images at once.
        on_images: called with how many images were done since the last call.

    Returns:
        What `extract_features` does, with "paths", text (n,), and "grid", the patches down and across, (2,).

    Raises:
        FeatureError: the model has no such features.
        DataError: none of the files can be read.
    """
    check_features(model, kinds, layers)
    good: list[str] = []
    bad: list[DataError] = []

    def found() -> Iterator[Arrays]:
        for i in range(0, len(paths), batch_size):
            several = paths[i : i + batch_size]
            read = in_parallel(partial(_readable, preprocessing), several, workers or default_workers())
            images = [image for image in read if not isinstance(image, DataError)]
            bad.extend(error for error in read if isinstance(error, DataError))
            good.extend(
                str(path) for path, image in zip(several, read, strict=True) if not isinstance(image, DataError)
            )
            if images:
                yield extract_features(model, np.concatenate(images), kinds, layers, batch_size, workers)
            on_images(len(several))

    parts = list(found())
    if not good:
        raise bad[0]
    size, patch = preprocessing.size, model.config.patch_size
    return {**_joined(parts), "paths": np.array(good), "grid": np.array([side // patch for side in size])}, bad


def _readable(preprocessing: Preprocessing, path: Path) -> np.ndarray | DataError:
    """One image, (1, C, H, W), or why it is none."""
    try:
        if path.suffix == ".npy":
            return prepare(preprocessing, read_image(path, preprocessing.channels, preprocessing.size)[None])
        return preprocessing([path])
    except DataError as error:
        return error


def features_of_split(
    model: ViT,
    preprocessing: Preprocessing,
    split: Split,
    kind: str = "pooled",
    batch_size: int = BATCH,
    workers: int | None = None,
    on_images: Callable[[int], Any] = lambda n: None,
) -> np.ndarray:
    """Return the features of all images of a split of a dataset, float32 (n, D) where the kind is not "patch_tokens".

    Images in files are prepared as the weights' family does (the model's `Preprocessing`); those in an array as
    `prepare` says.

    Raises:
        FeatureError: the model has no such features.
        DataError: an image cannot be used.
    """
    parts = []
    for i in range(0, len(split), batch_size):
        if isinstance(split.images, ImageFiles):
            images = preprocessing(split.images.paths[i : i + batch_size])
        else:
            images = prepare(preprocessing, split.images[i : i + batch_size])
        parts.append(extract_features(model, images, [kind], batch_size=batch_size, workers=workers))
        on_images(len(images))
    return _joined(parts)[kind]


def write_features(path: str | Path, arrays: Arrays) -> None:
    """Write arrays to an uncompressed ``.npz`` file, which is whole or not there, and holds no pickle.

    Raises:
        OSError: the file cannot be written.
        TypeError: an array holds Python objects.
    """
    if strange := [name for name, array in arrays.items() if array.dtype.hasobject]:
        raise TypeError(f"array {strange[0]!r} holds Python objects; give numbers or text")
    with atomic_file(Path(path)) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes any array for `allow_pickle`
