"""tinyvit: a Vision Transformer and the autograd engine beneath it, from arrays alone."""

from typing import Any

from tinyvit import engine
from tinyvit.engine import *  # noqa: F403 -- the engine's public names are tinyvit's
from tinyvit.vit import ViT, ViTConfig

__version__ = "0.1.0"
__all__ = ["ViT", "ViTConfig", "__version__"]
__all__ += engine.__all__


def __getattr__(name: str) -> Any:
    """`tv.study`, found when it is first asked for: training needs nothing of it."""
    if name == "study":
        import tinyvit.study as study

        return study
    raise AttributeError(f"module 'tinyvit' has no attribute {name!r}")
