"""tinyvit: a Vision Transformer and the autograd engine beneath it, from arrays alone."""

from tinyvit.engine import (
    BackendError,
    GradcheckError,
    Primitive,
    TapeError,
    Tensor,
    enable_grad,
    gpu_available,
    grad,
    gradcheck,
    gradgradcheck,
    no_grad,
    ops,
    primitive,
    seed,
    tensor,
    use_backend,
)
from tinyvit.vit import ViT, ViTConfig

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "GradcheckError",
    "Primitive",
    "TapeError",
    "Tensor",
    "ViT",
    "ViTConfig",
    "enable_grad",
    "gpu_available",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "no_grad",
    "ops",
    "primitive",
    "seed",
    "tensor",
    "use_backend",
]
