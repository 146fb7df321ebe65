"""Position tables and patch kernels for another image or patch size.

Resizing is linear and separable: one matrix an axis, R (n_out, n_in), and a picture becomes R_h · picture · R_wᵀ. The
authors of published weights resize in different ways, and the features differ with them; so a `Resampling` says which
is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MODES = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Resampling:
    """How a picture of another size is made.

    Args:
        mode: "bilinear" (two neighbours along an axis) or "bicubic" (four, with Keys' a = −0.75, or −0.5 where
            antialiased).
        antialias: when shrinking, widen the filter to all that falls into an output pixel, as Pillow does.
        align_corners: let the first and the last pixel of input and output coincide, instead of the picture's edges;
            bilinear, it is `scipy.ndimage.zoom` of order 1. A single pixel is the input's first.
        offset: step as if the output had this many pixels more: DINO's ``scale_factor=(n_out + 0.1) / n_in``.

    Raises:
        ValueError: the mode is unknown, or align_corners is combined with antialias or an offset.

    Source: PyTorch's `torch.nn.functional.interpolate` (ATen/native/UpSample.h). R. Keys, Cubic
    convolution interpolation for digital image processing, 1981.

    >>> squares = np.arange(1.0, 7) ** 2
    >>> for how in (Resampling("bicubic"), Resampling("bicubic", antialias=True), Resampling("bilinear"),
    ...             Resampling("bilinear", align_corners=True), Resampling("bicubic", offset=0.1)):
    ...     print((how.matrix(6, 4) @ squares).round(3))
    [ 1.504  7.234 18.391 33.824]
    [ 1.735  7.395 18.469 32.702]
    [ 1.75  7.75 18.25 33.25]
    [ 1.     7.333 19.    36.   ]
    [ 1.469  6.951 17.637 32.599]
    """

    mode: str
    antialias: bool = False
    align_corners: bool = False
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; it must be one of {', '.join(MODES)}")
        if self.align_corners and (self.antialias or self.offset):
            raise ValueError("align_corners goes with neither antialias nor an offset; choose one")

    def matrix(self, n_in: int, n_out: int) -> np.ndarray:
        """Return what resizes one axis: float64 (n_out, n_in), the sum of each row 1.

        Without an offset, it is the identity where n_in = n_out.

        Raises:
            ValueError: a size is less than 1.
        """
        if min(n_in, n_out) < 1:
            raise ValueError(f"sizes are {n_in} and {n_out}; both must be at least 1")
        step = n_in / (n_out + self.offset)
        if self.align_corners:
            centres = np.arange(n_out) * ((n_in - 1) / max(n_out - 1, 1))
        else:
            centres = (np.arange(n_out) + 0.5) * step - 0.5  # where an output pixel's middle falls on the input's axis
        return self._widened(centres, n_in, max(step, 1.0)) if self.antialias else self._sampled(centres, n_in)

    def _sampled(self, centres: np.ndarray, n_in: int) -> np.ndarray:
        """Weigh the neighbours of each centre; beyond the edge the picture goes on as it ends."""
        matrix = np.zeros((len(centres), n_in))
        for neighbour in (-1, 0, 1, 2):
            at = np.floor(centres) + neighbour
            inside = at.clip(0, n_in - 1).astype(int)
            np.add.at(matrix, (np.arange(len(centres)), inside), self._filter(at - centres, -0.75))
        return matrix

    def _widened(self, centres: np.ndarray, n_in: int, width: float) -> np.ndarray:
        """Weigh all pixels under the filter, `width` times as wide; beyond the edge there is nothing."""
        weights = self._filter((np.arange(n_in) - centres[:, None]) / width, -0.5)
        return weights / weights.sum(axis=1, keepdims=True)

    def _filter(self, x: np.ndarray, a: float) -> np.ndarray:
        """Weigh a pixel at distance x: a triangle, or Keys' cubic with the slope a at x = 1."""
        x = np.abs(x)
        if self.mode == "bilinear":
            return np.maximum(1 - x, 0)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resize_positions(
    table: np.ndarray, grid: tuple[int, int], new_grid: tuple[int, int], resampling: Resampling, prefix: int = 0
) -> np.ndarray:
    """Resize a table of position embeddings to another grid of patches; the same grid gives the table itself.

    Computed in float64, returned in the table's dtype.

    Args:
        table: (1, prefix + h·w, D), the patches row by row.
        grid, new_grid: (h, w), how many patches there are, and shall be, from top to bottom and from left to right.
        resampling: how.
        prefix: how many rows at the table's beginning belong to no patch (class token, registers); they are kept.

    Returns:
        (1, prefix + h'·w', D).

    Raises:
        ValueError: the table's shape does not go with the grid and the prefix, or a grid is empty.

    >>> table = np.arange(5.0).reshape(1, 5, 1)  # a class token, and 2×2 patches
    >>> resize_positions(table, (2, 2), (2, 3), Resampling("bilinear"), prefix=1).ravel()
    array([0. , 1. , 1.5, 2. , 3. , 3.5, 4. ])
    """
    (h, w), dim = grid, table.shape[-1]
    if table.shape != (1, prefix + h * w, dim):
        raise ValueError(
            f"the table is {table.shape}; a grid of {h}×{w} and a prefix of {prefix} need (1, {prefix + h * w}, D)"
        )
    if tuple(grid) == tuple(new_grid):
        return table
    rows, columns = (resampling.matrix(*sizes) for sizes in zip(grid, new_grid, strict=True))
    picture = table[0, prefix:].astype(np.float64).reshape(h, w, dim)
    resized = np.einsum("ah,hwd,bw->abd", rows, picture, columns, optimize=True).reshape(1, -1, dim)
    return np.concatenate([table[:, :prefix], resized.astype(table.dtype)], axis=1)


def resize_patches(
    kernel: np.ndarray, size: tuple[int, int], resampling: Resampling, *, pseudo_inverse: bool = True
) -> np.ndarray:
    """Resize the kernel of a patch embedding to patches of another size; the same size gives the kernel itself.

    With the pseudo-inverse (PI-resize), the product of a resized patch and the resized kernel is that of the patch and
    the kernel: exactly for larger patches, and as nearly as can be for smaller ones. Without, the kernel is resized
    like a picture, and its products grow or shrink with the number of pixels. Computed in float64, returned in
    the kernel's dtype.

    Args:
        kernel: (D, C, P, Q).
        size: (P', Q').
        resampling: how a patch would be resized.
        pseudo_inverse: whether to keep the products.

    Returns:
        (D, C, P', Q').

    Raises:
        ValueError: the kernel has other than four axes, or the size is empty.

    Source: Beyer et al., FlexiViT: One Model for All Patch Sizes, 2023, section 3.4. A patch's resize is separable, and
    so is its pseudo-inverse.

    >>> rng = np.random.default_rng(0)
    >>> kernel, patch, how = rng.normal(size=(8, 3, 4, 4)), rng.normal(size=(3, 4, 4)), Resampling("bilinear")
    >>> larger = how.matrix(4, 6) @ patch @ how.matrix(4, 6).T
    >>> before = np.einsum("dchw,chw->d", kernel, patch)
    >>> after = np.einsum("dchw,chw->d", resize_patches(kernel, (6, 6), how), larger)
    >>> np.allclose(before, after)
    True
    """
    if kernel.ndim != 4:
        raise ValueError(f"the kernel is {kernel.shape}; it must be (D, C, P, Q)")
    if kernel.shape[2:] == tuple(size):
        return kernel
    matrices = [resampling.matrix(*sizes) for sizes in zip(kernel.shape[2:], size, strict=True)]
    rows, columns = (np.linalg.pinv(matrix).T for matrix in matrices) if pseudo_inverse else matrices
    wide = kernel.astype(np.float64)
    return np.einsum("ah,dchw,bw->dcab", rows, wide, columns, optimize=True).astype(kernel.dtype)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Fit the kernel of a patch embedding to images of another number of channels, as timm does.

    To one channel it is summed over its own, so that a grey image gives what it gave as RGB. To more, its channels are
    repeated in turn and scaled by C / channels, so that sums keep their size. The same number gives the kernel itself.

    Args:
        kernel: (D, C, P, Q).
        channels: C'.

    Returns:
        (D, C', P, Q).

    Raises:
        ValueError: the kernel has other than four axes, or there is no channel.

    Source: timm, `adapt_input_conv`.

    >>> kernel = np.array([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
    >>> adapt_channels(kernel, 1).ravel(), adapt_channels(kernel, 4).ravel()
    (array([9.]), array([0.75, 1.5 , 4.5 , 0.75]))
    """
    if kernel.ndim != 4 or kernel.shape[1] < 1 or channels < 1:
        raise ValueError(f"the kernel is {kernel.shape}, and {channels} channels are wanted; both need at least one")
    own = kernel.shape[1]
    if channels == own:
        return kernel
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    return kernel[:, np.arange(channels) % own] * kernel.dtype.type(own / channels)
