"""From an image to tokens: the tutorial's Input Layer, Patch Embedding and Positional Encoding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tinyvit.engine import Tensor, ops, tensor
from tinyvit.layers.module import Module, Parameter, normal
from tinyvit.layers.resampling import RESAMPLINGS


def patches(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches and flatten each: (B, C, H, W) → (B, N, C·P²), N = H·W / P², row by row.

    Source: the tutorial's Input Layer, I_patch = I[:, i·P:(i+1)·P, j·P:(j+1)·P], for all i and j at once.

    Raises:
        ValueError: not four axes, or H or W is not a multiple of P.

    >>> patches(tensor(np.arange(16.0).reshape(1, 1, 4, 4)), 2).numpy()[0, 1]  # i = 0, j = 1
    array([2., 3., 6., 7.])
    """
    if images.ndim != 4:
        raise ValueError(f"images have the shape {images.shape}, not (B, C, H, W)")
    B, C, H, W = images.shape
    P = patch_size
    if H % P or W % P:
        raise ValueError(
            f"an image of {H}×{W} pixels cannot be cut into patches of {P}×{P}: both sides must be multiples"
        )
    grid = images.reshape(B, C, H // P, P, W // P, P)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(B, (H // P) * (W // P), C * P * P)


class PatchEmbedding(Module):
    """E = W_e · flatten(I_patch) + b_e: (B, C, H, W) → (B, N, D). Source: the tutorial's Patch Embedding.

    `proj.weight` is (D, C, P, P), as for the convolution of stride P that this is.

    >>> PatchEmbedding(patch_size=2, channels=3, dim=8)(tensor(np.zeros((1, 3, 4, 6)))).shape
    (1, 6, 8)
    """

    def __init__(self, patch_size: int, channels: int, dim: int, rng: np.random.Generator | None = None):
        self.patch_size = patch_size
        self.proj = _Projection(patch_size, channels, dim, rng)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, N, D)."""
        return self.proj(patches(images, self.patch_size))


class _Projection(Module):
    """The weights of the embedding, kept in a convolution's shape."""

    def __init__(self, patch_size: int, channels: int, dim: int, rng: np.random.Generator | None):
        shape = (dim, channels, patch_size, patch_size)
        self.weight = Parameter(normal(shape, (channels * patch_size**2) ** -0.5, rng))  # LeCun: variance 1/fan-in
        self.bias = Parameter(np.zeros(dim, np.float32))

    def forward(self, flat: Tensor) -> Tensor:
        return ops.linear(flat, self.weight.reshape(self.weight.shape[0], -1), self.bias)


class PositionalEncoding(Module):
    """E_pos = E_patch + P: (B, prefix + N, D) → (B, prefix + N, D). Source: the tutorial's Positional Encoding.

    Args:
        grid: patches down and across, N = down · across.
        dim: D; a multiple of 4 for "sincos".
        prefix: tokens before the patches that have a position too: 1 for the class token. The tutorial counts N
            positions; with the class token there are N + 1.
        kind: "learned", a table that is trained; or "sincos", fixed sines and cosines of row and column.

        resampling: how a learned table is fitted to another grid: a name of `RESAMPLINGS`.

    An image with another grid than the table's gets the table resampled, or sines and cosines of its own.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        prefix: int = 1,
        kind: str = "learned",
        rng: np.random.Generator | None = None,
        resampling: str = "bicubic",
    ):
        self.grid = grid
        self.prefix = prefix
        self.kind = kind
        self.resampling = RESAMPLINGS[resampling]
        if kind == "learned":
            shape = (1, prefix + grid[0] * grid[1], dim)
            self.table: Tensor = Parameter(normal(shape, 0.02, rng), decay=False)
        elif kind == "sincos":
            self.table = Tensor(sincos_2d(grid, dim, prefix))
        else:
            raise ValueError(f"positional encoding is 'learned' or 'sincos', not {kind!r}")

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield the table under this layer's own name, `pos_embed`, as the field's weight files have it."""
        if isinstance(self.table, Parameter):
            yield prefix.removesuffix("."), self.table

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, prefix + N, D) of an image with this grid of patches → the same with positions added."""
        table = self.table if grid == self.grid else self.resampled(grid)
        if tokens.shape[-2:] != table.shape[-2:]:
            raise ValueError(f"tokens of shape {tokens.shape} do not fit positions of shape {table.shape}")
        return tokens + table

    def resampled(self, grid: tuple[int, int]) -> Tensor:
        """Return the table for another grid: (1, prefix + N′, D)."""
        D = self.table.shape[-1]
        if self.kind == "sincos":
            return tensor(sincos_2d(grid, D, self.prefix), dtype=self.table.dtype, device=self.table.device)
        down, across = (
            tensor(self.resampling.matrix(old, new), dtype=self.table.dtype, device=self.table.device)
            for old, new in zip(self.grid, grid, strict=True)
        )
        square = self.table[0, self.prefix :].reshape(*self.grid, D)
        square = ops.einsum("ah,bw,hwd->abd", down, across, square)
        return ops.concatenate([self.table[:, : self.prefix], square.reshape(1, -1, D)], axis=1)


def sincos_2d(grid: tuple[int, int], dim: int, prefix: int = 0) -> np.ndarray:
    """Return fixed positions (1, prefix + N, D): sin and cos of column and row at D/4 frequencies; 0 for the prefix.

    Source: Chen, Xie & He 2021 (MoCo v3), after Vaswani et al. 2017.

    Raises:
        ValueError: dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {dim}")
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    row, column = (axis.reshape(-1, 1) * frequencies for axis in np.mgrid[: grid[0], : grid[1]])
    table = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
    return np.concatenate([np.zeros((prefix, dim)), table])[None].astype(np.float32)
