"""Pictures in files: what a model is given, what is refused, and that neither depends on threads."""

import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from tinyvit.data import DataError, Dataset, ImageFiles, Reading, Split, read_image
from tinyvit.data.images import in_parallel

CHINA, FLOWER = (Image.fromarray(photo) for photo in load_sample_images().images)  # 640 × 427 each
TURNED_AS = {  # EXIF's orientation: how an upright picture is laid down in the file
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Both photographs, in a few formats."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for name in ("china.png", "flower.png", "china.jpg", "flower.webp", "china.bmp", "flower.tiff", "china.ppm"):
        paths.append(folder / name)
        (CHINA if "china" in name else FLOWER).save(paths[-1])
    return paths


def planes(picture, size, box, filter):
    """What Pillow itself makes of a part of a picture: uint8 (C, H, W)."""
    resized = np.asarray(picture.resize(size[::-1], filter, box=box))
    return resized[None] if resized.ndim == 2 else resized.transpose(2, 0, 1)


# What comes out


@pytest.mark.parametrize(
    ("size", "ratio", "box"),
    [
        (224, 1.0, (106.5, 0, 533.5, 427)),
        (224, 0.875, (106.5 + 427 / 16, 427 / 16, 533.5 - 427 / 16, 427 * 15 / 16)),
        ((100, 200), 1.0, (0, 53.5, 640, 373.5)),
        ((200, 100), 0.5, (266.625, 106.75, 373.375, 320.25)),
    ],
)
@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "box"])
def test_evaluation_sees_the_centre(photos, size, ratio, box, filter):
    reading = Reading(image_size=size, crop_ratio=ratio, interpolation=filter)
    images = ImageFiles(photos[:2], reading)
    expected = planes(CHINA, reading.size, box, Image.Resampling[filter.upper()])
    assert images.shape == (2, 3, *reading.size)
    assert np.array_equal(images[0], expected)
    assert np.array_equal(read_image(photos[0], 3, reading.size, ratio, filter), expected)


def test_it_is_asked_as_an_array_is(photos):
    images = ImageFiles(photos, Reading(image_size=16))
    whole = images[:]
    assert (len(images), images.dtype, images.ndim, whole.shape) == (7, np.uint8, 4, images.shape)
    for index in (3, -1, np.int64(2), slice(1, 6, 2), slice(None, None, -1), slice(9, 9), [4, 0, 4], np.array([], int)):
        assert np.array_equal(images[index], whole[index]), index
    mask = np.arange(7) % 2 == 0
    assert np.array_equal(images[mask], whole[mask])
    with pytest.raises(IndexError):
        images[7]
    split = Split(images, np.arange(7))
    assert len(Split(ImageFiles([], Reading()), np.zeros(0, np.int64))) == 0
    with pytest.raises(DataError, match=r"labels must be int64 of shape \(7,\)"):
        Split(images, np.arange(6))
    data = Dataset("photos", split, split, split, tuple("abcdefg"), "")
    assert (data.channels, data.image_size) == (3, (16, 16))
    unit = whole / 255
    np.testing.assert_allclose(data.statistics()[0], unit.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.statistics()[1], unit.std(axis=(0, 2, 3)), rtol=1e-9)


def test_grey(photos):
    images = ImageFiles(photos[:1], Reading(image_size=32, channels=1))
    assert images.shape == (1, 1, 32, 32)
    box = (106.5, 0, 533.5, 427)
    assert np.array_equal(images[0], planes(CHINA.convert("L"), (32, 32), box, Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("P", "gif"), ("CMYK", "jpg"), ("LA", "png"), ("1", "png")])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb(tmp_path, mode, suffix, channels):
    path = tmp_path / f"x.{suffix}"
    CHINA.resize((60, 40)).convert(mode).save(path)
    images = ImageFiles([path], Reading(image_size=40, channels=channels))
    with Image.open(path) as picture:
        wanted = picture.convert("L" if channels == 1 else "RGB")
    assert np.array_equal(images[0], planes(wanted, (40, 40), (10, 0, 50, 40), Image.Resampling.BILINEAR))


def test_16_bits_are_scaled_and_not_clipped(tmp_path):
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for suffix in ("png", "tif"):
        Image.fromarray(levels).save(tmp_path / f"x.{suffix}")
        image = ImageFiles([tmp_path / f"x.{suffix}"], Reading(image_size=16, channels=1))[0]
        assert np.array_equal(image[0], levels // 257)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif has pixels of Pillow's mode F, which are not 8 or 16 bits"):
        ImageFiles([tmp_path / "f.tif"])[0]


@pytest.mark.parametrize("orientation", [0, 1, *TURNED_AS, 9])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_is_turned_upright(tmp_path, orientation, suffix):
    path, exif = tmp_path / f"x.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    laid = CHINA.transpose(TURNED_AS[orientation]) if orientation in TURNED_AS else CHINA
    laid.save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    images = ImageFiles([path], Reading(image_size=64))
    box = (50.25, 10.5, 600.5, 420)
    close = 0 if suffix == "png" else 12
    cut, _ = images.read([0], [lambda *size: box if size == (640, 427) else pytest.fail(f"{size}")])
    for found, where in ((images[0], (106.5, 0, 533.5, 427)), (cut[0], box)):
        difference = np.abs(found - planes(CHINA, (64, 64), where, Image.Resampling.BILINEAR).astype(int))
        assert difference.max() <= close
        assert difference.mean() <= close / 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_reason_to_refuse_a_picture(tmp_path):
    CHINA.save(tmp_path / "x.jpg", exif=b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert ImageFiles([tmp_path / "x.jpg"], Reading(image_size=8))[0].any()


@pytest.mark.parametrize("photo", [CHINA, FLOWER])
@pytest.mark.parametrize("size", [224, 64])
def test_a_large_jpeg_decoded_small_shows_the_same(tmp_path, photo, size):
    large = photo.resize((2559, 1707), Image.Resampling.LANCZOS)  # no multiples of 8
    large.save(tmp_path / "x.jpg", quality=90)
    large.save(tmp_path / "x.png", compress_level=0)
    with Image.open(tmp_path / "x.jpg") as full:
        boxes = [(0, 0, 2559, 1707), (1000.5, 3, 2559, 1600), (5.5, 700, 500, 900.25)]
        expected = [planes(full.convert("RGB"), (size, size), box, Image.Resampling.BILINEAR) for box in boxes]
    images = ImageFiles([tmp_path / "x.jpg"] * 3, Reading(image_size=size))
    found, _ = images.read(range(3), [lambda w, h, box=box: box for box in boxes])
    difference = np.abs(found - np.array(expected, int))
    assert difference.max() <= 10
    assert difference.mean(axis=(1, 2, 3)).max() <= 0.5
    assert not difference[2].any()  # this one is too small a part to be drafted


def test_boxes_are_cut_out_of_their_own_pictures(photos):
    images = ImageFiles(photos[:2], Reading(image_size=(20, 30), interpolation="bicubic"))
    box = (10.5, 20, 200, 90.25)
    found, readable = images.read([1, 0, 1], [lambda w, h: box, lambda w, h: (0, 0, w, h), lambda w, h: (-3, -3, w, h)])
    assert readable.tolist() == [True] * 3
    assert np.array_equal(found[0], planes(FLOWER, (20, 30), box, Image.Resampling.BICUBIC))
    assert np.array_equal(found[1], planes(CHINA, (20, 30), (0, 0, 640, 427), Image.Resampling.BICUBIC))
    assert np.array_equal(found[2], planes(FLOWER, (20, 30), (0, 0, 640, 427), Image.Resampling.BICUBIC))
    with pytest.raises(DataError, match="a box has nothing in common with the 640 × 427 pixels"):
        images.read([0], [lambda w, h: (700, 0, 800, 50)])


def test_the_number_of_workers_changes_nothing(photos):
    images = ImageFiles(photos * 2, Reading(image_size=32, on_bad_image="skip"))
    assert images.workers >= 1
    found = []
    for images.workers in (1, 2, 7):
        found.append(images.read(range(14))[0])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


# What is refused


def png(width, height, data=b""):
    """A PNG whose header says so much, whatever its pixels are."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(picture, format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


SMALL = CHINA.resize((40, 30))
BAD = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"not a picture", "is none of JPEG, .* or has a damaged head"),
    "short.png": (encoded(SMALL, "PNG")[:900], "is truncated or damaged"),
    "short.jpg": (encoded(SMALL, "JPEG")[:900], "is truncated or damaged"),
    "no-pixels.png": (png(40, 30), "is truncated or damaged"),
    "mislabelled.jpg": (encoded(SMALL, "PNG"), "is mislabelled: its contents are PNG"),
    "mislabelled.png": (encoded(SMALL, "GIF"), "is mislabelled: its contents are GIF"),
    "large.png": (png(12_000, 12_000), "is a decompression bomb"),  # Pillow warns
    "bomb.png": (png(30_000, 30_000), "is a decompression bomb"),  # Pillow refuses
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is none of JPEG"),
}


@pytest.fixture
def bad(tmp_path):
    for name, (data, _) in BAD.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_image_is_named_with_the_reason_and_what_to_do(bad, name, photos):
    images = ImageFiles([photos[0], bad / name] * 50, Reading(image_size=8))
    message = f"{name} {BAD[name][1]}.*; mend it .*, or train with --on-bad-image skip, .*: `tinyvit data scan` lists"
    for ask in (lambda: images[1], lambda: images[:], lambda: images.read([0, 1])):
        with pytest.raises(DataError, match=message):
            ask()


def test_bombs_are_refused_where_warnings_are_errors_too(bad):
    with pytest.raises(DataError, match=r"large\.png is a decompression bomb"):
        ImageFiles([bad / "large.png"])[0]


def test_a_missing_file_and_a_folder(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"nowhere\.png does not exist"):
        ImageFiles([tmp_path / "nowhere.png"])[0]
    with pytest.raises(DataError, match=r"folder\.png has a damaged head: .*Is a directory"):
        ImageFiles([tmp_path / "folder.png"])[0]


def test_skipping_is_no_advice_where_not_one_may_be_skipped(bad):
    images = ImageFiles([bad / "empty.png"] * 99)
    with pytest.raises(
        DataError, match=r"empty\.png is empty; mend it or move it out of the dataset: `tinyvit data scan`"
    ):
        images[0]


def test_skipped_images_are_black_and_counted(bad, photos):
    paths = [*photos[:2] * 100, bad / "short.jpg", bad / "empty.png"]
    images = ImageFiles(paths, Reading(image_size=8, on_bad_image="skip"))
    found, readable = images.read([200, 0, 201, 200])
    assert readable.tolist() == [False, True, False, False]
    assert not found[~readable].any()
    assert np.array_equal(found[1], images[0])
    assert {path.name: reason.split()[1] for path, reason in images.bad.items()} == {
        "short.jpg": "truncated",
        "empty.png": "empty",
    }
    with pytest.raises(DataError, match=r"empty\.png is empty; mend it or move it out of the dataset: `tinyvit data"):
        images[[0, 201]]


def test_more_than_one_in_a_hundred_is_too_many(bad, photos):
    some = [bad / "short.jpg", bad / "empty.png", bad / "text.png"]
    images = ImageFiles([photos[0]] * 197 + some, Reading(image_size=8, on_bad_image="skip"))
    images.read([197, 198])
    with pytest.raises(
        DataError, match=r"at least 3 of 200 images .* more than 1%: .*short\.jpg is tr.*; .*empty\.png is empty"
    ):
        images.read([199])


def test_a_message_names_up_to_ten_bad_images(tmp_path):
    for number, end in ((10, r"9\.png does not exist; `tinyvit data scan --list`"), (12, r"9\.png .*; … and 2 more;")):
        images = ImageFiles([tmp_path / f"{i}.png" for i in range(number)], Reading(on_bad_image="skip"))
        with pytest.raises(DataError, match=rf"at least {number} of {number} images .*0\.png does not exist; .*{end}"):
            images.read(range(number))


def test_statistics_leave_out_what_cannot_be_read(bad):
    def dataset(paths):
        images = ImageFiles(paths, Reading(image_size=8, on_bad_image="skip"))
        split = Split(images, np.zeros(len(paths), np.int64))
        return Dataset("x", split, split, split, ("a",), "")

    SMALL.save(bad / "good.png")
    good = [bad / "good.png"] * 100
    assert dataset([*good, bad / "empty.png"]).statistics() == dataset(good).statistics()
    with pytest.raises(DataError, match="1 of 1 images cannot be used"):
        dataset([bad / "empty.png"]).statistics()


def test_statistics_look_at_a_fixed_sample(photos, monkeypatch):
    images = ImageFiles([photos[0]] * 5000, Reading(image_size=2))
    asked = []

    def read(rows, boxes=None):
        asked.extend(rows)
        return np.zeros((len(rows), *images.shape[1:]), np.uint8), np.ones(len(rows), bool)

    monkeypatch.setattr(images, "read", read)
    split = Split(images, np.zeros(5000, np.int64))
    Dataset("x", split, split, split, ("a",), "").statistics()
    assert len(asked) == len(set(asked)) == 1024
    assert (asked[0], asked[-1]) == (0, 4999)
    assert set(np.diff(asked)) <= {4, 5}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_a_file_cut_off_anywhere_is_bad_or_whole(tmp_path, format, data):
    whole = encoded(SMALL, format)
    path = tmp_path / f"x.{format.lower()}"
    path.write_bytes(whole)
    images = ImageFiles([path], Reading(image_size=30, on_bad_image="skip"))
    expected = images[0]
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        found = images[0]
    except DataError as error:
        assert path.name in str(error)  # noqa: PT017 - or else no error at all
    else:
        assert np.array_equal(found, expected)  # what is missing was not of the pixels


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(format=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]), data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_end_in_a_data_error_or_in_pixels(tmp_path, format, data):
    damaged = bytearray(encoded(SMALL, format))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"x.{format.lower()}"
    path.write_bytes(damaged)
    try:
        assert ImageFiles([path], Reading(image_size=8))[0].shape == (3, 8, 8)
    except DataError as error:
        assert path.name in str(error)  # noqa: PT017 - whether there is one is the damage's affair


# One image, for `predict`


def test_read_image_goes_by_the_contents(tmp_path, photos):
    (tmp_path / "x.jpg").write_bytes(photos[0].read_bytes())
    (tmp_path / "x").write_bytes(photos[0].read_bytes())
    expected = read_image(photos[0], 3, (20, 30))
    for name in ("x.jpg", "x"):
        assert np.array_equal(read_image(tmp_path / name, 3, (20, 30)), expected)


def test_read_image_says_what_is_wrong(tmp_path, bad):
    for path, channels, message in (
        (bad / "short.png", 3, r"short\.png cannot be read as an image: it is truncated or damaged"),
        (bad / "nowhere.png", 3, r"there is no image file .*nowhere\.png"),
        (bad / "short.png", 4, "gives 1 or 3 channels, but the model takes 4"),
    ):
        with pytest.raises(DataError, match=message):
            read_image(path, channels, (8, 8))


@pytest.mark.parametrize("layout", [(1, 8, 6), (8, 6), (8, 6, 1)])
def test_read_image_takes_arrays_as_they_are(tmp_path, layout):
    array = np.arange(48, dtype=np.uint8).reshape(layout)
    np.save(tmp_path / "x.npy", array)
    assert np.array_equal(read_image(tmp_path / "x.npy", 1, (8, 6)), array.reshape(1, 8, 6))
    with pytest.raises(DataError, match=r"holds uint8 .*; the model takes uint8"):
        read_image(tmp_path / "x.npy", 1, (6, 8))


def test_without_pillow_it_says_what_to_install(monkeypatch, photos):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    for ask in (lambda: read_image(photos[0], 3, (8, 8)), lambda: ImageFiles(photos)):
        with pytest.raises(DataError, match=r"needs Pillow: pip install 'tinyvit\[vision\]'"):
            ask()


# Threads


@given(st.integers(0, 40), st.integers(1, 9))
def test_in_parallel_is_map(n, workers):
    assert in_parallel(lambda x: x * x, range(n), workers) == [x * x for x in range(n)]


def test_in_parallel_uses_no_more_threads_than_it_may():
    for workers in (1, 2):
        threads = set(in_parallel(lambda _: threading.get_ident(), range(500), workers))
        assert len(threads) <= workers
        assert workers > 1 or threads == {threading.get_ident()}


def test_an_error_in_parallel_stops_the_rest_and_comes_out():
    done = []

    def work(i):
        done.append(i)
        if i == 3:
            raise KeyError("three")

    with pytest.raises(KeyError, match="three"):
        in_parallel(work, range(100_000), 2)
    assert len(done) < 100_000


def test_in_parallel_within_in_parallel_does_not_wait_for_itself():
    def inner(i):
        return sum(in_parallel(lambda j: i * j, range(5), 4))

    assert in_parallel(inner, range(20), 4) == [10 * i for i in range(20)]


def test_paths_are_told_as_they_were_given():
    assert ImageFiles([Path("a") / "b.png", "c.png"]).paths == ["a/b.png", "c.png"]
