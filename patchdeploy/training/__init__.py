"""Training: patches over a frozen base, and the baselines to compare them with."""

from patchdeploy.training.baseline import BaselineResult, evaluate, train_baseline
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.transfer import train_patch
from patchdeploy.training.workers import Workers, open_workers

__all__ = [
    "BaselineResult",
    "TrainConfig",
    "Workers",
    "evaluate",
    "open_workers",
    "train_baseline",
    "train_patch",
]
