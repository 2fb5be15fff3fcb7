"""patchdeploy: one frozen int8 base network, a tiny patch per task and resolution.

Running a bundle needs numpy, Pillow and one runtime; what trains or exports is imported on first
use, so that ``import patchdeploy`` loads neither torch nor a runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from patchdeploy.bundle import Bundle, add_task, open_bundle, remove_task, size_report
from patchdeploy.data import (
    ImageDataset,
    LoadConfig,
    OverlapWarning,
    Preprocessing,
    compose_scenes,
    load_idx,
    load_image,
    load_image_folder,
    load_packaged,
    warn_overlap,
)
from patchdeploy.errors import PatchdeployError, PatchRefusedError
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.runtime import Engine, Prediction
from patchdeploy.runtime.bundle_store import open_store
from patchdeploy.store import Store
from patchdeploy.verify import VerifyReport, verify_bundle

if TYPE_CHECKING:
    from patchdeploy.base import Base
    from patchdeploy.export import (
        CalibrationConfig,
        CodingConfig,
        Signing,
        export_bundle,
        export_patch,
    )
    from patchdeploy.patch import Patch, PatchConfig, count_parameters
    from patchdeploy.patch.counts import count_family
    from patchdeploy.patched_model import PatchedModel, attach_patch
    from patchdeploy.patched_model.mixed import MixedTaskModel
    from patchdeploy.training import (
        ResolutionsConfig,
        TaskImages,
        TrainConfig,
        train_baseline,
        train_patch,
        train_resolutions,
        train_tasks,
    )
    from patchdeploy.training.int8_retune import retune_patch_int8
    from patchdeploy.training.mixed import train_many_patches
    from patchdeploy.training.run import run_training
    from patchdeploy.training.run_config import RunConfig, load_run_config
    from patchdeploy.training.sweep import sweep_rates

__all__ = [
    "Base",
    "Bundle",
    "CalibrationConfig",
    "CodingConfig",
    "Engine",
    "ImageDataset",
    "LoadConfig",
    "MixedTaskModel",
    "OverlapWarning",
    "Patch",
    "PatchConfig",
    "PatchRefusedError",
    "PatchdeployError",
    "PatchedModel",
    "Prediction",
    "Preprocessing",
    "ResolutionsConfig",
    "RunConfig",
    "Signing",
    "SigningKey",
    "Store",
    "TaskImages",
    "TrainConfig",
    "TrustedKeys",
    "VerifyReport",
    "add_task",
    "attach_patch",
    "compose_scenes",
    "count_family",
    "count_parameters",
    "export_bundle",
    "export_patch",
    "load_idx",
    "load_image",
    "load_image_folder",
    "load_packaged",
    "load_run_config",
    "open_bundle",
    "open_store",
    "remove_task",
    "retune_patch_int8",
    "run_training",
    "size_report",
    "sweep_rates",
    "train_baseline",
    "train_many_patches",
    "train_patch",
    "train_resolutions",
    "train_tasks",
    "verify_bundle",
    "warn_overlap",
]

_NEEDS_TORCH = {
    "Base": "base",
    "CalibrationConfig": "export",
    "CodingConfig": "export",
    "MixedTaskModel": "patched_model.mixed",
    "Patch": "patch",
    "PatchConfig": "patch",
    "PatchedModel": "patched_model",
    "ResolutionsConfig": "training",
    "RunConfig": "training.run_config",
    "Signing": "export",
    "TaskImages": "training",
    "TrainConfig": "training",
    "attach_patch": "patched_model",
    "count_family": "patch.counts",
    "count_parameters": "patch",
    "export_bundle": "export",
    "export_patch": "export",
    "load_run_config": "training.run_config",
    "retune_patch_int8": "training.int8_retune",
    "run_training": "training.run",
    "sweep_rates": "training.sweep",
    "train_baseline": "training",
    "train_many_patches": "training.mixed",
    "train_patch": "training",
    "train_resolutions": "training",
    "train_tasks": "training",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for (PEP 562).

    Raises:
        MissingExtraError: torch is not installed.
    """
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"patchdeploy.{_NEEDS_TORCH[name]}"), name)
    except ModuleNotFoundError as error:
        from patchdeploy.errors import MissingExtraError

        raise MissingExtraError(
            f"patchdeploy.{name} needs {error.name}, which is not installed; "
            "run: pip install 'patchdeploy[train]'"
        ) from error
