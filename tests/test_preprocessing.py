"""The preprocessing of each weight family: its own processor, or a loop in its words, on real photographs."""

import dataclasses
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from peer_libraries import torchvision_module
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from tinyvit.data import DataError
from tinyvit.pretrained import PREPROCESSING, Preprocessing, WeightsError
from tinyvit.pretrained import preprocessing as families

CHINA, FLOWER = (Image.fromarray(photo) for photo in load_sample_images().images)  # 640 × 427 each
PHOTOS = {
    "landscape": CHINA,
    "flower": FLOWER,
    "portrait": FLOWER.crop((150, 3, 421, 424)),
    "odd": CHINA.crop((0, 0, 333, 251)),
    "square": FLOWER.crop((101, 0, 528, 427)),
    "small": CHINA.crop((200, 100, 297, 161)),
    "strip": CHINA.crop((0, 200, 640, 260)),
    "fits": CHINA.crop((0, 0, 224, 224)),
}
SMALL = 1e-3  # grey levels: the roundings of float32


def levels_of(pixels, preprocessing):
    """Undo a normalisation: float64 (C, H, W), grey levels."""
    mean, std = (np.array(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (np.asarray(pixels, np.float64) * std + mean) * 255


def difference(preprocessing, photo, theirs):
    """Return how far what a model sees is from what it has seen: (C, H, W), grey levels."""
    [ours] = preprocessing(photo)
    assert (ours.dtype, ours.shape) == (np.float32, tuple(theirs.shape))
    return np.abs(levels_of(ours, preprocessing) - levels_of(theirs, preprocessing))


@contextmanager
def older_pillow():
    """Let Pillow resize across and then down; since 13 it begins with what shrinks much more, and rounds there."""
    resize = Image.Image.resize

    def across_first(self, size, resample, *_, **__):
        return resize(resize(self, (size[0], self.height), resample), size, resample)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", across_first)
        yield


# timm


def timm_eval(config):
    torchvision_module()
    data = pytest.importorskip("timm.data")
    return data.create_transform(**data.resolve_data_config(pretrained_cfg=config), is_training=False)


TIMM = [
    {"num_classes": 1000},  # all defaults
    {"crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3},
    {"input_size": [3, 384, 384], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3},
    {"input_size": [3, 240, 240], "crop_pct": 0.95, "interpolation": "bilinear"},
    {"input_size": [3, 225, 225], "crop_pct": 0.93, "interpolation": "lanczos"},
    {"input_size": [3, 192, 256], "crop_pct": 0.9},
    {"input_size": [3, 255, 128], "crop_pct": 0.875, "interpolation": "bilinear"},
    {"input_size": [3, 224, 224], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
    {"input_size": [3, 223, 224], "crop_pct": 0.9, "crop_mode": "squash"},
    {"input_size": [3, 224, 224], "crop_pct": 1.0, "crop_mode": "border"},
    {"input_size": [3, 200, 301], "crop_pct": 0.8, "crop_mode": "border"},
    {"input_size": [3, 64, 64], "crop_pct": 1.2, "interpolation": "nearest"},
    {"input_size": [1, 96, 96], "crop_pct": 0.9, "mean": [0.5], "std": [0.25]},
]


@pytest.mark.parametrize("config", TIMM, ids=str)
def test_timm_to_the_pixel(config):
    theirs = timm_eval(config)
    for photo in PHOTOS.values():
        photo = photo.convert("L") if config.get("input_size", [3])[0] == 1 else photo
        with older_pillow():
            pixels = theirs(photo)
        assert difference(Preprocessing.from_timm(config), photo, pixels).max() < SMALL


def test_in_one_call_pillow_gives_the_same_where_proportions_stay():
    """Without the older Pillow, whichever there is."""
    for config in TIMM[:6]:
        for photo in (PHOTOS["odd"], PHOTOS["portrait"]):
            assert difference(Preprocessing.from_timm(config), photo, timm_eval(config)(photo)).max() < SMALL


@given(
    sides=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(2, 48), st.integers(2, 48)) | st.integers(2, 48).map(lambda side: (side, side)),
    crop_pct=st.floats(0.5, 1.3),
    mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos", "box", "hamming", "nearest"]),
    seed=st.integers(0, 9),
)
def test_timm_to_the_pixel_whatever_is_drawn(sides, size, crop_pct, mode, interpolation, seed):
    assume(mode != "border" or min(sides) * min(size) >= 2 * max(sides))  # else timm gives a side no pixels
    config = {"input_size": [3, *size], "crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
    photo = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8))
    with older_pillow():
        pixels = timm_eval(config)(photo)
    assert difference(Preprocessing.from_timm(config), photo, pixels).max() < SMALL


# transformers

HUGGINGFACE = [
    ("ViT", {}),
    ("ViT", {"size": {"height": 384, "width": 256}, "resample": 3, "image_mean": [0.4, 0.5, 0.6]}),
    ("ViT", {"size": 224, "image_mean": list(families.IMAGENET_MEAN), "image_std": list(families.IMAGENET_STD)}),
    ("ViT", {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
    ("ViT", {"do_normalize": False}),
    ("ViT", {"do_rescale": False, "do_normalize": False}),
    ("ViT", {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}),
    ("DeiT", {}),
    ("DeiT", {"size": 438, "crop_size": 384, "image_mean": list(families.IMAGENET_MEAN)}),
    ("DeiT", {"do_center_crop": False}),
    ("Bit", {}),
    (
        "Bit",
        {
            "size": {"shortest_edge": 256},
            "image_mean": list(families.IMAGENET_MEAN),
            "image_std": list(families.IMAGENET_STD),
        },
    ),
    ("Bit", {"size": 255, "crop_size": {"height": 224, "width": 192}, "resample": 2}),
    ("Bit", {"do_resize": False, "crop_size": 32}),
    ("CLIP", {}),
    ("CLIP", {"size": 336, "crop_size": 336}),
    ("Siglip", {}),
    ("Siglip", {"size": {"height": 256, "width": 256}, "resample": 2}),
]


def processor(kind, config, backend):
    if not backend:
        torchvision_module()
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, f"{kind}ImageProcessor{backend}")(**config)


@pytest.mark.parametrize(("kind", "config"), HUGGINGFACE, ids=str)
def test_transformers_to_the_pixel_with_pillow_and_within_a_level_with_pytorch(kind, config):
    """PyTorch rounds the weights of a filter; with bicubic, fewer than one level in ten thousand is two off."""
    pillow, pytorch = (processor(kind, config, backend) for backend in ("Pil", ""))
    preprocess = Preprocessing.from_huggingface(json.loads(pytorch.to_json_string()))
    assert Preprocessing.from_huggingface({"image_processor_type": f"{kind}ImageProcessor"} | config) == preprocess
    for photo in PHOTOS.values():
        with older_pillow():
            [pixels] = pillow(photo, return_tensors="np")["pixel_values"]
        assert difference(preprocess, photo, pixels).max() < SMALL
        [pixels] = pytorch(photo, return_tensors="np")["pixel_values"]
        assert within_a_level(difference(preprocess, photo, pixels), preprocess)


def within_a_level(off, preprocess):
    bicubic = preprocess.interpolation == "bicubic"
    return off.max() < (2 if bicubic else 1) + SMALL and (off > 1.5).mean() < 1e-4


def test_a_crop_larger_than_the_image_is_padded():
    config = {"size": {"shortest_edge": 200}, "crop_size": {"height": 224, "width": 301}}
    preprocess = Preprocessing.from_huggingface({"image_processor_type": "BitImageProcessorFast"} | config)
    theirs = processor("Bit", config, "")
    for photo in PHOTOS.values():
        [pixels] = theirs(photo, return_tensors="np")["pixel_values"]
        assert within_a_level(difference(preprocess, photo, pixels), preprocess)


def test_the_old_short_file_of_vit_and_other_old_files():
    """As google/vit-base-patch16-224 and facebook/deit-base had them before transformers 4.26."""
    half, mean, std = [0.5, 0.5, 0.5], list(families.IMAGENET_MEAN), list(families.IMAGENET_STD)
    vit = {"do_normalize": True, "do_resize": True, "image_mean": half, "image_std": half, "size": 224}
    assert Preprocessing.from_huggingface(vit) == families.HF_VIT
    assert Preprocessing.from_huggingface({"feature_extractor_type": "ViTFeatureExtractor"} | vit) == families.HF_VIT
    deit = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": mean, "image_std": std}
    deit |= {"feature_extractor_type": "DeiTFeatureExtractor", "crop_size": 224, "resample": 3, "size": 256}
    assert str(Preprocessing.from_huggingface(deit)).startswith("squashed to 256×256 pixels (bicubic), centre 224×224")
    dinov2 = {"image_processor_type": "BitImageProcessor", "crop_size": {"height": 224, "width": 224}, "resample": 3}
    dinov2 |= {"size": {"shortest_edge": 256}, "image_mean": mean, "image_std": std, "rescale_factor": 1 / 255}
    assert Preprocessing.from_huggingface(dinov2) == families.HF_DINOV2
    clip = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "do_center_crop": True}
    expected = dataclasses.replace(families.CLIP, convention="huggingface")
    assert Preprocessing.from_huggingface(clip) == expected


# torchvision, for DINO, DINOv2, DeiT and its own


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("name", ["IMAGENET_256", "TORCHVISION"])
def test_torchvision_to_the_pixel(name, photo):
    torchvision_module()
    from torchvision import transforms

    preprocess = getattr(families, name)
    mode = transforms.InterpolationMode(preprocess.interpolation)
    steps = [transforms.Resize(256, mode), transforms.CenterCrop(224), transforms.ToTensor()]
    steps.append(transforms.Normalize(families.IMAGENET_MEAN, families.IMAGENET_STD))
    assert difference(preprocess, PHOTOS[photo], transforms.Compose(steps)(PHOTOS[photo])).max() < SMALL


# TensorFlow, for vit_jax and big_vision: loops in the words of its kernels


def tensorflow_bilinear(image, size):
    """ResizeBilinear with half_pixel_centers, as in tensorflow/core/kernels/image/resize_bilinear_op.cc."""

    def neighbours(n_in, n_out):
        at = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
        below = np.floor(at)
        return np.maximum(below, 0).astype(int), np.minimum(np.ceil(at), n_in - 1).astype(int), at - below

    (top, bottom, y), (left, right, x) = map(neighbours, image.shape[:2], size)
    image, x, y = image.astype(np.float64), x[:, None], y[:, None, None]
    above = image[top][:, left] + (image[top][:, right] - image[top][:, left]) * x
    below = image[bottom][:, left] + (image[bottom][:, right] - image[bottom][:, left]) * x
    return above + (below - above) * y


def tensorflow_area(image, size):
    """ResizeArea, pixel by pixel, as in tensorflow/core/kernels/image/resize_area_op.cc."""

    def shares(place, scale, n):
        start, end = place * scale, (place + 1) * scale
        rows = np.arange(math.floor(start), min(math.ceil(end), n))
        return rows, [min(row + 1, end) - max(row, start) for row in rows]

    step_y, step_x = (old / new for old, new in zip(image.shape, size, strict=False))
    resized = np.empty((*size, image.shape[2]))
    columns = [shares(x, step_x, image.shape[1]) for x in range(size[1])]
    for y in range(size[0]):
        rows, heights = shares(y, step_y, image.shape[0])
        line = np.tensordot(heights, image[rows].astype(np.float64), 1)
        for x, (places, widths) in enumerate(columns):
            resized[y, x] = widths @ line[places] / (step_y * step_x)
    return resized


def resize_small(image, smaller_size):
    """big_vision/pp/ops_image.py: the size in float32, levels cut down to uint8."""
    h, w = image.shape[:2]
    factor = np.float32(smaller_size) / np.float32(min(h, w))
    size = tuple(int(np.round(np.float32(side) * factor)) for side in (h, w))
    return np.clip(tensorflow_area(image, size), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("photo", PHOTOS)
def test_vit_jax(photo):
    image = np.asarray(PHOTOS[photo])
    theirs = ((tensorflow_bilinear(image, (224, 224)) - 127.5) / 127.5).transpose(2, 0, 1)
    assert difference(families.GOOGLE_JAX, PHOTOS[photo], theirs).max() < SMALL


@pytest.mark.parametrize("photo", PHOTOS)
def test_bilinear_without_antialias_is_also_pytorchs(photo):
    torch = pytest.importorskip("torch")
    for size in ((224, 224), (384, 300)):
        tensor = torch.tensor(np.asarray(PHOTOS[photo]).transpose(2, 0, 1)[None].astype(np.float64))
        theirs = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", antialias=False)[0].numpy()
        assert np.abs(families.GOOGLE_JAX.for_size(size).levels(PHOTOS[photo]) - theirs).max() < SMALL


@pytest.mark.parametrize("photo", ["landscape", "portrait", "odd", "small"])
def test_big_vision(photo):
    image = np.asarray(PHOTOS[photo])
    small = resize_small(image, 256).astype(np.float64)
    top, left = ((side - 224) // 2 for side in small.shape[:2])
    theirs = (small[top : top + 224, left : left + 224] / 255 * 2 - 1).transpose(2, 0, 1)
    assert difference(families.BIG_VISION_I1K, PHOTOS[photo], theirs).max() < 1 + SMALL
    squashed = np.floor(tensorflow_bilinear(image, (224, 224))).transpose(2, 0, 1)
    assert np.abs(families.BIG_VISION_SQUASH.levels(PHOTOS[photo]) - squashed).max() < 1 + SMALL


@given(n_in=st.integers(1, 60), n_out=st.integers(1, 60))
def test_an_area_has_the_same_mean_and_whole_ones_are_averages(n_in, n_out):
    matrix, levels = families._area(n_in, n_out), np.random.default_rng(n_in).random(n_in)
    assert np.allclose(matrix.sum(axis=1), 1)
    assert np.allclose(matrix.sum(axis=0), n_out / n_in)
    assert np.allclose(families._area(n_in * n_out, n_out) @ np.repeat(levels, n_out)[: n_in * n_out], matrix @ levels)


# What all have in common

ALL = {
    **PREPROCESSING,
    "squash": Preprocessing.from_timm({"crop_mode": "squash"}),
    "border": Preprocessing.from_timm({"crop_mode": "border"}),
}
SIDES = st.tuples(st.integers(1, 70), st.integers(1, 70))
NAMES = st.sampled_from(sorted(ALL))


@given(name=NAMES, sides=SIDES, size=SIDES, channels=st.sampled_from([1, 3]), level=st.integers(0, 255))
def test_a_plain_image_stays_plain_at_any_size(name, sides, size, channels, level):
    assume(max(sides) < 30 * min(sides))
    preprocess = dataclasses.replace(ALL[name], channels=channels, mean=0.25, std=0.5).for_size(size)
    levels = preprocess.levels(np.full((*sides, 3), level, np.uint8))
    assert (levels.dtype, levels.shape) == (np.float32, (channels, *size))
    if preprocess.resize == "longest":
        assert set(np.unique(levels)) <= {64, level}
    else:
        assert np.abs(levels - level).max() < SMALL


@given(name=NAMES, sides=SIDES, seed=st.integers(0, 9))
def test_what_is_seen_in_a_mirror_is_seen_so(name, sides, seed):
    """Where the middle is a middle: with an even remainder."""
    image = np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8)
    preprocess = ALL[name].for_size((16, 16))
    assume(not any(old % 2 for old in preprocess._resized_size(*sides)))
    levels = preprocess.levels(image)
    assert 0 <= levels.min() <= levels.max() <= 255
    tolerance = 0 if preprocess.interpolation in families.PILLOW else 1 if "big" in preprocess.convention else SMALL
    assert np.abs(preprocess.levels(image[:, ::-1])[:, :, ::-1] - levels).max() <= tolerance


@pytest.mark.parametrize("name", ALL)
def test_fields_go_through_json_and_the_own_size_changes_nothing(name):
    preprocess = ALL[name]
    assert Preprocessing(**json.loads(json.dumps(dataclasses.asdict(preprocess)))) == preprocess
    assert preprocess.for_size(preprocess.size) == preprocess == preprocess.for_size(preprocess.size[0])
    assert hash(preprocess) == hash(dataclasses.replace(preprocess))
    assert "\n" not in str(preprocess)


@pytest.mark.parametrize(
    ("preprocess", "text"),
    [
        (families.GOOGLE_JAX, "squashed to 224×224 pixels (bilinear without antialias), mean 0.5 0.5 0.5, "),
        (families.BIG_VISION_I1K, "shortest side to 256 pixels (area), centre 224×224, mean 0.5 0.5 0.5, "),
        (families.TIMM, "shortest side to 248 pixels (bicubic), centre 224×224, mean 0.5 0.5 0.5, "),
        (families.TIMM.for_size((224, 448)), "to cover 248×497 pixels (bicubic), centre 224×448, "),
        (families.IMAGENET_256.for_size(384), "shortest side to 438 pixels (bicubic), centre 384×384, mean 0.485 "),
        (ALL["border"].for_size((90, 180)), "to fit into 102×205 pixels (bicubic), centre 90×180, "),
        (ALL["border"], "longest side to 256 pixels (bicubic), centre 224×224, "),
        (ALL["squash"], "squashed to 256×256 pixels (bicubic), centre 224×224, "),
        (Preprocessing((28, 28), "none", mean=0.1, std=0.3, channels=1), "as it is, centre 28×28, grey, mean 0.1, std"),
    ],
    ids=str,
)
def test_it_says_what_it_does(preprocess, text):
    assert str(preprocess).startswith(text)


def test_timms_rule_for_another_size_is_its_config_for_that_size():
    for config in TIMM:
        channels, *size = config.get("input_size", [3, 224, 224])
        other = (size[0] + 96, size[1] + 33)
        ours = Preprocessing.from_timm(config).for_size(other)
        assert ours == Preprocessing.from_timm(config | {"input_size": [channels, *other]})


# What images may be


def test_paths_pictures_and_arrays_one_or_several(tmp_path):
    path, preprocess = tmp_path / "china.png", families.TIMM
    CHINA.save(path)
    array = np.asarray(CHINA)
    expected = preprocess(CHINA)
    assert expected.shape == (1, 3, 224, 224)
    for image in (path, str(path), array, [path], (image for image in [CHINA]), array[None]):
        assert np.array_equal(preprocess(image), expected)
    assert np.array_equal(preprocess([FLOWER, path, array]), np.concatenate([preprocess(FLOWER), expected, expected]))
    assert preprocess([]).shape == (0, 3, 224, 224)
    grey = CHINA.convert("L")
    assert np.array_equal(preprocess(grey), preprocess(np.asarray(grey)))
    assert np.array_equal(preprocess(grey), preprocess(np.asarray(grey)[:, :, None]))
    assert np.array_equal(preprocess(np.dstack([array, array[:, :, :1]])), expected)  # what is transparent shows
    one = dataclasses.replace(preprocess, channels=1, mean=0.5, std=0.5)
    assert np.array_equal(one(CHINA), one(grey))


def test_exif_is_obeyed_and_a_jpeg_is_decoded_at_its_full_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    large = CHINA.resize((2560, 1708))
    large.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "turned.jpg") as picture:
        upright = ImageOps.exif_transpose(picture)
        assert np.array_equal(families.TIMM.levels(picture), families.TIMM.levels(upright))
    assert np.array_equal(families.TIMM.levels(tmp_path / "turned.jpg"), families.TIMM.levels(upright))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.png", "there is no image file"),
        (Path(os.curdir), "is a folder"),
        (np.zeros((5, 5, 3)), r"the image is float64 \(5, 5, 3\); give uint8"),
        (np.zeros((5, 5, 2), np.uint8), r"the image is uint8 \(5, 5, 2\); give uint8"),
        (np.zeros(5, np.uint8), r"the image is uint8 \(5,\)"),
        (np.zeros((0, 5, 3), np.uint8), r"the image is uint8 \(0, 5, 3\)"),
        (Image.new("RGB", (0, 5)), "the image has 0 × 5 pixels"),
        (3, "an image is a path, a Pillow image or a uint8 array, not int"),
        ([None], "an image is a path, a Pillow image or a uint8 array, not NoneType"),
        (np.zeros((1, 9999, 3), np.uint8), r"an image of 9999 × 1 pixels would be resized to 2479752 × 248; cut it"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image(image, message):
    with pytest.raises(DataError, match=message):
        families.TIMM(image)


def test_damaged_files_and_bombs_are_refused(tmp_path, monkeypatch):
    CHINA.save(tmp_path / "whole.jpg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((tmp_path / "whole.jpg").read_bytes()[:9000])
    with pytest.raises(DataError, match=r"cut.jpg cannot be read as an image: it is truncated or damaged"):
        families.TIMM([tmp_path / "whole.jpg", cut])
    with pytest.raises(DataError, match="the image is truncated or damaged"), Image.open(cut) as picture:
        families.TIMM(picture)
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty.png cannot be read as an image: it is empty"):
        families.TIMM(tmp_path / "empty.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="decompression bomb"):
        families.TIMM(tmp_path / "whole.jpg")


# What configs may not be


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input_size": 224}, "input_size is 224; it must be channels, height and width"),
        ({"input_size": [3, 0, 224]}, r"input_size is \[0, 224\]; it must be pixels"),
        ({"input_size": [2, 224, 224]}, "channels is 2"),
        ({"interpolation": "random"}, "interpolation is 'random'; it must be one of nearest, lanczos"),
        ({"interpolation": "area"}, "interpolation is 'area'; it must be one of nearest, lanczos"),
        ({"crop_mode": "top"}, "crop_mode is 'top'; it must be one of center, squash, border"),
        ({"crop_pct": -1}, "crop_pct is -1; it must be a number from 1e-06"),
        ({"crop_pct": 1e-5}, "resize_to is .* it must be pixels"),
        ({"crop_pct": True}, "crop_pct is True"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\]; it must be a number for each of the 3 channels"),
        ({"std": [0.5, 0.5, 0.0]}, "std is 0.0"),
        ({"std": [0.5, 0.5, math.nan]}, "std is nan"),
        ({"mean": "grey"}, "mean is"),
    ],
    ids=str,
)
def test_configs_of_timm_that_are_refused(config, message):
    with pytest.raises(WeightsError, match=message):
        Preprocessing.from_timm(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "ConvNextImageProcessor"}, "image_processor_type is 'ConvNextImageProcessor'; it"),
        ({"image_processor_type": ["ViT"]}, r"image_processor_type is \['ViT'\]"),
        ({"do_pad": True}, "do_pad is True; such a step is not known here"),
        ({"do_resize": "no"}, "do_resize is 'no'"),
        ({"resample": 6}, "resample is 6; it must be the number of a filter"),
        ({"resample": True}, "resample is True"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"size": "big"}, "size is 'big'; it must be pixels"),
        ({"size": {"longest_edge": 224}}, "size is {'longest_edge': 224}; it must be pixels"),
        ({"size": {"height": 224}}, "size is {'height': 224}"),
        ({"size": {"height": 224, "width": 10**9}}, "size is"),
        ({"size": {"shortest_edge": 224}}, "images would differ in size"),
        ({"do_resize": False}, "images would differ in size"),
        ({"do_center_crop": True}, "crop_size is None"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 224}}, "a height and a width are needed"),
        ({"image_mean": [0.5, 0.5]}, "image_std is .* it must be a number for each of the 2 channels"),
        ({"image_std": 0}, "image_std is 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
    ],
    ids=str,
)
def test_configs_of_transformers_that_are_refused(config, message):
    with pytest.raises(WeightsError, match=message):
        Preprocessing.from_huggingface(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(-3, 300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge"]), inner, max_size=2)
    ),
    max_leaves=6,
)
KEYS = (
    "input_size interpolation crop_pct crop_mode mean std image_mean image_std size crop_size resample rescale_factor"
)
KEYS += " do_resize do_center_crop do_rescale do_normalize do_pad image_processor_type default_to_square"


@given(st.dictionaries(st.sampled_from(KEYS.split()), JSON, max_size=4))
def test_whatever_a_file_says_it_is_understood_or_refused(config):
    for read in (Preprocessing.from_timm, Preprocessing.from_huggingface):
        text = ""
        try:
            json.dumps(dataclasses.asdict(read(config)), allow_nan=False)
        except WeightsError as error:
            text = str(error)
        assert "\n" not in text
        assert len(text) < 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "fit"}, "resize is 'fit'; it must be one of shortest, longest, squash, none"),
        ({"interpolation": ["area"]}, r"interpolation is \['area'\]"),
        ({"convention": "jax"}, "convention is 'jax'; it must be one of timm, huggingface, vit_jax, big_vision"),
        ({"channels": 4}, "channels is 4"),
        ({"size": (224,)}, r"size is \(224,\)"),
        ({"size": 2**20}, "size is 1048576; it must be pixels, H = W or .H, W., from 1 to 16,384"),
        ({"resize_to": (0, 3)}, r"resize_to is \(0, 3\)"),
        ({"crop_pct": 0}, "crop_pct is 0"),
    ],
    ids=str,
)
def test_fields_that_are_refused(fields, message):
    with pytest.raises(WeightsError, match=message):
        Preprocessing(**{"size": (224, 224), **fields})
