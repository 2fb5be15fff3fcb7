"""patchdeploy: one frozen int8 base network, a tiny patch per task and resolution.

Every public name is imported when it is first asked for, so that ``import patchdeploy`` takes no
time and loads neither numpy nor torch nor a runtime. One thing happens at once: the
telemetry of onnxruntime (1.29 and newer) is switched off, which must be done before its import.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchdeploy.base import Base
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
    from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
    from patchdeploy.runtime import Engine, Prediction
    from patchdeploy.runtime.bundle_store import open_store
    from patchdeploy.store import Store
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
    from patchdeploy.verify import VerifyReport, verify_bundle

# onnxruntime's Privacy.md: read when it is imported, and inherited by processes. Who has set it
# has chosen.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"

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

_HOMES = {
    "Base": "base",
    "Bundle": "bundle",
    "CalibrationConfig": "export",
    "CodingConfig": "export",
    "Engine": "runtime",
    "ImageDataset": "data",
    "LoadConfig": "data",
    "MixedTaskModel": "patched_model.mixed",
    "OverlapWarning": "data",
    "Patch": "patch",
    "PatchConfig": "patch",
    "PatchRefusedError": "errors",
    "PatchdeployError": "errors",
    "PatchedModel": "patched_model",
    "Prediction": "runtime",
    "Preprocessing": "data",
    "ResolutionsConfig": "training",
    "RunConfig": "training.run_config",
    "Signing": "export",
    "SigningKey": "patchfile.keys",
    "Store": "store",
    "TaskImages": "training",
    "TrainConfig": "training",
    "TrustedKeys": "patchfile.keys",
    "VerifyReport": "verify",
    "add_task": "bundle",
    "attach_patch": "patched_model",
    "compose_scenes": "data",
    "count_family": "patch.counts",
    "count_parameters": "patch",
    "export_bundle": "export",
    "export_patch": "export",
    "load_idx": "data",
    "load_image": "data",
    "load_image_folder": "data",
    "load_packaged": "data",
    "load_run_config": "training.run_config",
    "open_bundle": "bundle",
    "open_store": "runtime.bundle_store",
    "remove_task": "bundle",
    "retune_patch_int8": "training.int8_retune",
    "run_training": "training.run",
    "size_report": "bundle",
    "sweep_rates": "training.sweep",
    "train_baseline": "training",
    "train_many_patches": "training.mixed",
    "train_patch": "training",
    "train_resolutions": "training",
    "train_tasks": "training",
    "verify_bundle": "verify",
    "warn_overlap": "data",
}
"""Where each public name comes from."""


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562).

    Raises:
        MissingExtraError: what it needs is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"patchdeploy.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        from patchdeploy.errors import MissingExtraError

        raise MissingExtraError(
            f"patchdeploy.{name} needs {error.name}, which is not installed; "
            "run: pip install 'patchdeploy[train]'"
        ) from error
