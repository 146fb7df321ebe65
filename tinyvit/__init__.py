"""tinyvit: a Vision Transformer and the autograd engine beneath it, from arrays alone."""

from tinyvit import engine
from tinyvit.engine import *  # noqa: F403 -- the engine's public names are tinyvit's
from tinyvit.vit import ViT, ViTConfig

__version__ = "0.1.0"
__all__ = ["ViT", "ViTConfig", "__version__"]
__all__ += engine.__all__
