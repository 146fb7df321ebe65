"""PyTorch, eager or compiled, in its own idioms: fused attention, fused LayerNorm and GELU, default threads."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from _work import LR, WEIGHT_DECAY, Work, decays
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

import tinyvit as tv


class Block(nn.Module):
    """An encoder layer, (B, N, D) → (B, N, D)."""

    def __init__(self, c: tv.ViTConfig):
        super().__init__()
        self.num_heads = c.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(c.dim, c.eps), nn.LayerNorm(c.dim, c.eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(c.dim, 3 * c.dim), "proj": nn.Linear(c.dim, c.dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(c.dim, c.mlp_hidden), "fc2": nn.Linear(c.mlp_hidden, c.dim)})

    def forward(self, x: Any) -> Any:
        B, N, D = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        heads = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.attn["proj"](heads.transpose(1, 2).reshape(B, N, D))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Model(nn.Module):
    """The Vision Transformer under timm's names, (B, C, H, W) → (B, K)."""

    def __init__(self, c: tv.ViTConfig, checkpoint: bool):
        super().__init__()
        self.checkpoint = checkpoint
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(c.channels, c.dim, c.patch_size, c.patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, c.num_patches + 1, c.dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm, self.head = nn.LayerNorm(c.dim, c.eps), nn.Linear(c.dim, c.num_classes)

    def forward(self, x: Any) -> Any:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = recomputed(block, x, use_reentrant=False) if self.checkpoint else block(x)
        return self.head(self.norm(x)[:, 0])


class PyTorch:
    """PyTorch: eager; compiled, with the optimizer's fused form as well; or with layers computed twice.

    On a GPU the optimizer's fused form is taken always, and `precision` is what autocast computes in.
    """

    def __init__(
        self, work: Work, device: str, compiled: bool = False, checkpoint: bool = False, precision: str = "fp32"
    ):
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        place = "cuda" if device == "gpu" else "cpu"
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.autocast = partial(torch.autocast, place, half) if half else nullcontext
        self.model: Any = Model(work.config, checkpoint)
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in work.state().items()})
        self.model.to(place)
        groups = [
            {"params": [p for name, p in self.model.named_parameters() if decays(name, p) == decayed], **settings}
            for decayed, settings in ((True, {}), (False, {"weight_decay": 0.0}))
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=LR, weight_decay=WEIGHT_DECAY, fused=compiled or device == "gpu" or None
        )
        if compiled:
            torch.compiler.reset()  # or shapes of the work before would make it compile for any shape
            self.model = torch.compile(self.model, dynamic=False)
        self.images = torch.from_numpy(work.images).to(place)
        self.labels = torch.from_numpy(work.labels).to(place)

    def step(self) -> float:
        return float(self.queue().item())  # on a GPU this waits

    def queue(self) -> Any:
        """Make a step and return its loss, without waiting for it."""
        self.optimizer.zero_grad()
        with self.autocast():
            loss: Any = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def forward(self) -> np.ndarray:
        with torch.inference_mode():
            return self.model(self.images).numpy(force=True)
