"""How a picture, or a table of positions, is fitted to another size.

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


RESAMPLINGS = {
    "bilinear": Resampling("bilinear"),
    "bilinear_corners": Resampling("bilinear", align_corners=True),  # Google's code
    "bilinear_antialias": Resampling("bilinear", antialias=True),
    "bicubic": Resampling("bicubic"),  # Hugging Face's
    "bicubic_antialias": Resampling("bicubic", antialias=True),  # timm's
    "bicubic_offset": Resampling("bicubic", offset=0.1),  # Facebook's DINO and DINOv2
}
"""The ways that a config can name."""
