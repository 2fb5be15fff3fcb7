"""Training: patches over a frozen base, and the baselines to compare them with."""

from patchdeploy.training.config import TrainConfig
from patchdeploy.training.transfer import (
    BaselineResult,
    evaluate,
    train_baseline,
    train_patch,
)

__all__ = ["BaselineResult", "TrainConfig", "evaluate", "train_baseline", "train_patch"]
