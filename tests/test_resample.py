"""Resizing matrices: properties, figures by hand, and PyTorch's interpolate and SciPy's zoom as oracles."""

import numpy as np
import pytest

from tinyvit.layers import Resampling
from tinyvit.pretrained import adapt_channels, resize_patches, resize_positions

ALL = [
    Resampling(mode, **options)
    for mode in ("bilinear", "bicubic")
    for options in (
        {},
        {"antialias": True},
        {"align_corners": True},
        {"offset": 0.1},
        {"antialias": True, "offset": 0.1},
    )
]
SIZES = [(14, 24), (24, 14), (37, 16), (16, 37), (7, 7), (1, 4), (4, 1), (2, 3), (3, 2), (5, 40), (40, 5)]


@pytest.mark.parametrize("how", ALL, ids=str)
@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_rows_sum_to_one_and_the_same_size_is_the_identity(how, n_in, n_out):
    matrix = how.matrix(n_in, n_out)
    assert matrix.shape == (n_out, n_in)
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-14)
    if n_in == n_out and not how.offset:
        assert np.array_equal(matrix, np.eye(n_in))
    if not how.offset and (n_out > 1 or not how.align_corners):  # what is seen in a mirror is resized alike
        assert np.allclose(matrix, matrix[::-1, ::-1], atol=1e-12)


def test_lines_stay_lines_and_parabolas_parabolas():
    """Away from the edges: two neighbours say all of a line, and Keys' cubic with a = −0.5 of a parabola."""
    centres = (np.arange(45) + 0.5) * (30 / 45) - 0.5
    inside = slice(5, -5)
    line = Resampling("bilinear").matrix(30, 45) @ np.arange(30.0)
    parabola = Resampling("bicubic", antialias=True).matrix(30, 45) @ np.arange(30.0) ** 2
    assert np.allclose(line[inside], centres[inside])
    assert np.allclose(parabola[inside], centres[inside] ** 2)


def test_figures_by_hand():
    squares = np.arange(1.0, 7) ** 2
    assert np.allclose(Resampling("bilinear").matrix(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    assert np.allclose(
        Resampling("bilinear", antialias=True).matrix(4, 2), [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]]
    )
    assert np.allclose(Resampling("bilinear", align_corners=True).matrix(6, 4) @ squares, [1, 22 / 3, 19, 36])
    # Keys with a = −0.75 half-way between pixels: −3/32, 19/32, 19/32, −3/32, the edge repeated
    assert np.allclose(Resampling("bicubic").matrix(4, 2)[0] * 32, [16, 19, -3, 0])


def torch_resized(torch, picture, size, how):
    options = {"antialias": how.antialias}
    if how.offset:
        options["scale_factor"] = [(m + how.offset) / n for m, n in zip(size, picture.shape[1:], strict=True)]
    else:
        options["size"] = size
    options["align_corners"] = how.align_corners
    tensor = torch.from_numpy(picture)[None]
    return torch.nn.functional.interpolate(tensor, mode=how.mode, **options)[0].numpy()


@pytest.mark.parametrize("how", ALL, ids=str)
@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((37, 37), (16, 16)), ((24, 14), (10, 20)), ((3, 5), (2, 9))]
)
def test_as_pytorch_interpolates(how, old, new):
    torch = pytest.importorskip("torch")
    picture = np.random.default_rng(0).standard_normal((3, *old))
    expected = torch_resized(torch, picture, new, how)
    table = np.concatenate([np.ones((1, 2, 3)), picture.reshape(3, -1).T[None]], axis=1)
    resized = resize_positions(table, old, new, how, prefix=2)
    assert np.array_equal(resized[:, :2], table[:, :2])
    assert np.abs(resized[0, 2:].T.reshape(expected.shape) - expected).max() < 1e-12


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((6, 9), (9, 4)), ((3, 3), (1, 2))]
)
def test_as_scipy_zooms(old, new):
    ndimage = pytest.importorskip("scipy.ndimage")
    picture = np.random.default_rng(0).standard_normal((*old, 5))
    expected = ndimage.zoom(picture, (new[0] / old[0], new[1] / old[1], 1), order=1)
    resized = resize_positions(picture.reshape(1, -1, 5), old, new, Resampling("bilinear", align_corners=True))
    assert np.abs(resized.reshape(expected.shape) - expected).max() < 1e-12


def test_positions_keep_their_dtype_and_the_same_grid_gives_the_table_itself():
    table = np.random.default_rng(0).standard_normal((1, 17, 4)).astype(np.float32)
    for how in ALL:
        assert resize_positions(table, (4, 4), (4, 4), how, prefix=1) is table
        resized = resize_positions(table, (4, 4), (2, 5), how, prefix=1)
        assert resized.dtype == np.float32
        assert resized.shape == (1, 11, 4)


@pytest.mark.parametrize("how", [how for how in ALL if not how.offset], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 12)])
def test_pi_resize_keeps_products_with_larger_patches(how, size):
    rng = np.random.default_rng(0)
    kernel, patch = rng.standard_normal((6, 3, 5, 7)), rng.standard_normal((3, 5, 7))
    larger = how.matrix(5, size[0]) @ patch @ how.matrix(7, size[1]).T
    resized = resize_patches(kernel, size, how)
    assert np.allclose(np.einsum("dchw,chw->d", resized, larger), np.einsum("dchw,chw->d", kernel, patch))


def test_pi_resize_is_the_pseudo_inverse_of_the_whole_resize():
    kernel, how = np.random.default_rng(0).standard_normal((6, 3, 8, 8)), Resampling("bicubic", antialias=True)
    whole = np.kron(how.matrix(8, 5), how.matrix(8, 6))
    expected = (kernel.reshape(6, 3, 64) @ np.linalg.pinv(whole)).reshape(6, 3, 5, 6)
    assert np.allclose(resize_patches(kernel, (5, 6), how), expected)


def test_patches_as_pictures():
    torch = pytest.importorskip("torch")
    kernel = np.random.default_rng(0).standard_normal((6, 3, 8, 8))
    for how in ALL:
        expected = np.stack([torch_resized(torch, picture, (4, 12), how) for picture in kernel])
        assert np.allclose(resize_patches(kernel, (4, 12), how, pseudo_inverse=False), expected, atol=1e-12)
    assert resize_patches(kernel, (8, 8), ALL[0]) is kernel
    assert resize_patches(kernel.astype(np.float32), (4, 4), ALL[0]).dtype == np.float32


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7])
def test_channels(channels):
    kernel = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
    adapted = adapt_channels(kernel, channels)
    assert (adapted.shape, adapted.dtype) == ((6, channels, 4, 4), np.float32)
    grey = np.random.default_rng(1).standard_normal((4, 4))
    if channels == 1:
        assert np.allclose((adapted * grey).sum((1, 2, 3)), (kernel * grey).sum((1, 2, 3)), atol=1e-5)
    else:
        assert np.array_equal(adapted[:, -1], kernel[:, (channels - 1) % 3] * np.float32(3 / channels))
    assert adapt_channels(kernel, 3) is kernel


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, k: Resampling("nearest"), "mode is 'nearest'; it must be one of bilinear, bicubic"),
        (lambda t, k: Resampling("bicubic", antialias=True, align_corners=True), "align_corners goes with neither"),
        (lambda t, k: ALL[0].matrix(0, 4), "sizes are 0 and 4"),
        (
            lambda t, k: resize_positions(t, (4, 4), (2, 2), ALL[0]),
            r"table is \(1, 17, 4\); a grid of 4×4 .* \(1, 16, D\)",
        ),
        (lambda t, k: resize_positions(t, (4, 4), (0, 2), ALL[0], 1), "sizes are 4 and 0"),
        (lambda t, k: resize_patches(k[0], (2, 2), ALL[0]), r"it must be \(D, C, P, Q\)"),
        (lambda t, k: adapt_channels(k, 0), "0 channels are wanted"),
    ],
)
def test_what_cannot_be_resized(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((1, 17, 4)), np.zeros((6, 3, 4, 4)))
