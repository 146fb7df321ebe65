"""Position tables and patch kernels for another image or patch size, or another number of channels."""

from __future__ import annotations

import numpy as np

from tinyvit.layers import Resampling


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
