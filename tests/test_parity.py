"""The same ViT in plain PyTorch, with the same weights: logits, gradients and a training run must be the same."""

import numpy as np
import pytest

import tinyvit as tv
from tinyvit.training.optim import AdamW

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

CONFIG = tv.ViTConfig(image_size=16, patch_size=4, channels=3, num_classes=7, dim=32, depth=4, num_heads=4, mlp_ratio=2)
STEPS, BATCH = 50, 8
RECIPE = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c.num_heads
        self.qkv = nn.Linear(c.dim, 3 * c.dim)
        self.proj = nn.Linear(c.dim, c.dim)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c.dim, 1e-6), nn.LayerNorm(c.dim, 1e-6)
        self.attn = Attention(c)
        hidden = int(c.dim * c.mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(c.dim, hidden), "fc2": nn.Linear(hidden, c.dim)})
        self.act = {"gelu": F.gelu, "relu": F.relu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}[c.activation]

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.norm2(x))))


class TorchViT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.pool = c.pool
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + c.num_patches, c.dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(c.channels, c.dim, c.patch_size, c.patch_size)})
        self.blocks = nn.Sequential(*(Block(c) for _ in range(c.depth)))
        self.norm = nn.LayerNorm(c.dim, 1e-6)
        self.head = nn.Linear(c.dim, c.num_classes)

    def forward(self, images):
        x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if self.pool == "cls" else x[:, 1:].mean(dim=1))


def twins(dtype, **changes):
    """Our model, no parameter of it zero, and PyTorch's with the same weights: `load_state_dict` takes them by name."""
    rng = np.random.default_rng(0)
    ours = tv.ViT(tv.ViTConfig(**{**vars(CONFIG), **changes}), rng).to(dtype=dtype)
    for p in ours.parameters():
        p.data += (0.1 * rng.standard_normal(p.shape)).astype(dtype)
    theirs = TorchViT(ours.config).to(getattr(torch, np.dtype(dtype).name))
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    return ours, theirs


def batches(dtype):
    """The same few noisy classes of images each time, so that there is something to learn."""
    rng = np.random.default_rng(1)
    prototypes = rng.standard_normal((7, 3, 16, 16))
    for _ in range(STEPS):
        labels = rng.integers(7, size=BATCH)
        yield (prototypes[labels] + rng.standard_normal((BATCH, 3, 16, 16))).astype(dtype), labels


def losses_of(ours, theirs, images, labels):
    left = tv.ops.cross_entropy(ours(images), labels, label_smoothing=0.1)
    right = F.cross_entropy(theirs(torch.from_numpy(images)), torch.from_numpy(labels), label_smoothing=0.1)
    return left, right


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_tanh"])
def test_logits_and_all_gradients_are_pytorchs(activation, pool):
    ours, theirs = twins(np.float64, activation=activation, pool=pool)
    images, labels = next(batches(np.float64))
    expected = theirs(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(ours(images).detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    for loss in losses_of(ours, theirs, images, labels):
        loss.backward()
    found = dict(ours.named_parameters())
    scale = max(p.grad.abs().max().item() for p in theirs.parameters())
    for name, p in theirs.named_parameters():
        gradient = p.grad.numpy()
        np.testing.assert_allclose(found[name].grad.numpy(), gradient, rtol=1e-10, atol=1e-13 * scale, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
def test_fifty_steps_of_adamw_give_pytorchs_losses(dtype, tolerance):
    ours, theirs = twins(dtype)
    optimizer = AdamW(ours.named_parameters(), **RECIPE)
    tokens = ("cls_token", "pos_embed")
    groups = {True: [], False: []}
    for name, p in theirs.named_parameters():
        groups[p.ndim > 1 and name not in tokens].append(p)
    decay = [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]
    their_optimizer = torch.optim.AdamW(decay, **RECIPE)
    history = []
    for images, labels in batches(dtype):
        losses = losses_of(ours, theirs, images, labels)
        for each in (optimizer, their_optimizer):
            each.zero_grad()
        for loss in losses:
            loss.backward()
        for each in (optimizer, their_optimizer):
            each.step()
        history.append([loss.item() for loss in losses])
    left, right = np.array(history).T
    np.testing.assert_allclose(left, right, rtol=tolerance)
    assert right[-5:].mean() < 0.7 * right[:5].mean()  # it did learn, so the steps were large enough to tell
