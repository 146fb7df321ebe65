"""Training: optimizers, schedules, the loop, checkpoints, and the run that puts them together."""

from tinyvit.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tinyvit.training.config import Config, ConfigError, DataConfig, TrainingConfig
from tinyvit.training.ema import EMA
from tinyvit.training.evaluation import evaluate, infer, predict, top_k
from tinyvit.training.finetuning import Initial, freeze, layer_scales
from tinyvit.training.graph import StepGraph
from tinyvit.training.loss_scale import LossScale
from tinyvit.training.optim import SGD, Adam, AdamW, Optimizer, clip_grad_norm
from tinyvit.training.parallel import parallel_backward, shards_for
from tinyvit.training.run import Run, TrainedModel, load_trained
from tinyvit.training.schedules import constant, cosine, step_decay
from tinyvit.training.trainer import Interrupted, NonFiniteLossError, Trainer
from tinyvit.training.transfer import on_device

__all__ = [
    "EMA",
    "SGD",
    "Adam",
    "AdamW",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataConfig",
    "Initial",
    "Interrupted",
    "LossScale",
    "NonFiniteLossError",
    "Optimizer",
    "Run",
    "StepGraph",
    "TrainedModel",
    "Trainer",
    "TrainingConfig",
    "clip_grad_norm",
    "constant",
    "cosine",
    "evaluate",
    "freeze",
    "infer",
    "layer_scales",
    "load_checkpoint",
    "load_trained",
    "on_device",
    "parallel_backward",
    "predict",
    "save_checkpoint",
    "shards_for",
    "step_decay",
    "top_k",
]
