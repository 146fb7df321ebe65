"""tinyvit: a Vision Transformer and the autograd engine beneath it, from arrays alone."""

from typing import TYPE_CHECKING

from tinyvit import engine
from tinyvit.engine import *  # noqa: F403 -- the engine's public names are tinyvit's
from tinyvit.vit import ViT, ViTConfig

__version__ = "0.1.0"
__all__ = ["ViT", "ViTConfig", "__version__"]
__all__ += engine.__all__

if TYPE_CHECKING:
    from tinyvit import study as study
else:

    def __getattr__(name):
        """`tv.study`, loaded when it is first asked for: nobody else needs it."""
        if name != "study":
            raise AttributeError(f"module 'tinyvit' has no attribute {name!r}")
        import tinyvit.study

        return tinyvit.study
