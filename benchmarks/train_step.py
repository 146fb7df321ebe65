"""A whole train step (forward, backward, AdamW) of a ViT, beside PyTorch eager, in turn, in one run.

    python benchmarks/train_step.py                  # on a CPU
    python benchmarks/train_step.py --device gpu     # through CuPy

Float32, exact GELU; on a GPU without TF32 on either side. Times are medians; the ratio is tinyvit / PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import _common
import numpy as np

import tinyvit as tv
from tinyvit.engine.backend import namespace_on
from tinyvit.training import AdamW

SMALL = {"image_size": 28, "patch_size": 4, "channels": 1, "num_classes": 10, "dim": 128, "depth": 6, "num_heads": 4}
CIFAR = {"image_size": 32, "patch_size": 4, "num_classes": 10, "dim": 192, "depth": 12, "num_heads": 3}
WORK: dict[str, tuple[dict[str, Any], int, int]] = {  # name: (config, batch on a CPU, batch on a GPU)
    "28x28x1 p4 D128 L6": (SMALL, 128, 512),
    "32x32x3 p4 D192 L12": (CIFAR, 64, 256),
    "224x224x3 p16 Ti": ({"dim": 192, "depth": 12, "num_heads": 3}, 16, 64),
    "224x224x3 p16 S": ({"dim": 384, "depth": 12, "num_heads": 6}, 8, 64),
}


def tinyvit_step(config: tv.ViTConfig, images: np.ndarray, labels: np.ndarray, device: str) -> Callable[[], Any]:
    xp = namespace_on(device)
    model = tv.ViT(config, np.random.default_rng(0))
    model.to(device=device)
    optimizer = AdamW(model.named_parameters(), lr=1e-3, weight_decay=0.05)
    images, labels = xp.asarray(images), xp.asarray(labels)

    def step() -> None:
        loss = tv.ops.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "gpu":
            xp.cuda.get_current_stream().synchronize()

    return step


def torch_step(config: tv.ViTConfig, images: np.ndarray, labels: np.ndarray, device: str) -> Callable[[], Any]:
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            D = config.dim
            self.norm1, self.norm2 = nn.LayerNorm(D, 1e-6), nn.LayerNorm(D, 1e-6)
            self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.fc1, self.fc2 = nn.Linear(D, config.mlp_hidden), nn.Linear(config.mlp_hidden, D)

        def forward(self, x: Any) -> Any:
            B, N, D = x.shape
            h = config.num_heads
            q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, h, D // h).permute(2, 0, 3, 1, 4)
            heads = functional.scaled_dot_product_attention(q, k, v)
            x = x + self.proj(heads.transpose(1, 2).reshape(B, N, D))
            return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            c = config
            self.patch = nn.Conv2d(c.channels, c.dim, c.patch_size, c.patch_size)
            self.cls = nn.Parameter(torch.zeros(1, 1, c.dim))
            self.pos = nn.Parameter(torch.randn(1, c.num_patches + 1, c.dim) * 0.02)
            self.blocks = nn.Sequential(*(Block() for _ in range(c.depth)))
            self.norm, self.head = nn.LayerNorm(c.dim, 1e-6), nn.Linear(c.dim, c.num_classes)

        def forward(self, x: Any) -> Any:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
            return self.head(self.norm(self.blocks(x))[:, 0])

    place = "cuda" if device == "gpu" else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = Model().to(place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    x, y = torch.from_numpy(images).to(place), torch.from_numpy(labels).to(place)

    def step() -> None:
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device == "gpu":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = _common.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    for name, (fields, cpu_batch, gpu_batch) in WORK.items():
        config = tv.ViTConfig(**fields)
        batch = gpu_batch if options.device == "gpu" else cpu_batch
        images = rng.standard_normal((batch, config.channels, config.height, config.width)).astype(np.float32)
        labels = rng.integers(0, config.num_classes, batch)
        candidates = {
            "tinyvit": tinyvit_step(config, images, labels, options.device),
            "torch": torch_step(config, images, labels, options.device),
        }
        ms = _common.medians(_common.paired(candidates, options.rounds))
        rows.append({"work": name, "batch": batch, "ms": ms, "ratio": round(ms["tinyvit"] / ms["torch"], 3)})
        print(rows[-1], flush=True)
    print(_common.save(f"train_step_{options.device}", {"unit": "ms, medians", "rows": rows}, options.out))


if __name__ == "__main__":
    main()
