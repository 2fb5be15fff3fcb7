"""Training: patches over a frozen base, networks that tasks or resolutions share, and baselines."""

from patchdeploy.training.baseline import BaselineResult, evaluate, train_baseline
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.multitask import MultiTaskResult, TaskImages, train_tasks
from patchdeploy.training.resolutions import (
    ResolutionsConfig,
    ResolutionsResult,
    train_resolutions,
)
from patchdeploy.training.transfer import train_patch
from patchdeploy.training.workers import Workers, open_workers

__all__ = [
    "BaselineResult",
    "MultiTaskResult",
    "ResolutionsConfig",
    "ResolutionsResult",
    "TaskImages",
    "TrainConfig",
    "Workers",
    "evaluate",
    "open_workers",
    "train_baseline",
    "train_patch",
    "train_resolutions",
    "train_tasks",
]
