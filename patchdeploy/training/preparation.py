"""What every method needs before its first step: device, split, pixels, bounds, a digest.

In: a base, labelled images, settings. Out: `Samples` to train on and to choose the best epoch by,
bounds that keep scales positive, and the digest that ties a checkpoint to all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, check_classes, split
from patchdeploy.data.sources import image_paths
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.patch.forward import share_structure
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.samples import Samples, name_memory

SCALE_FLOOR = 1e-3
"""A trained scale stays at or above this share of the base's: its sign never changes, so that the
base's int8 rows serve every task."""
PROBE_PX = 256
TRAINING_SHARE = 0.5
"""Of a GPU's memory that images leave to training; beyond it they stay in the computer's."""

TEACHER, ALL_WEIGHTS = "a teacher", "learn='all'"
ENSEMBLE = "teach='ensemble' over several resolutions"
_PATCH_ALONE: Mapping[str, str | None] = MappingProxyType({"transfer": None, "int8_retune": None})
READERS: Mapping[str, Mapping[str, str | None]] = MappingProxyType(
    {
        "shared_learning_rate": {"tasks": None, "resolutions": ALL_WEIGHTS},
        "distillation_weight": {"transfer": TEACHER, "baseline": TEACHER, "int8_retune": None},
        "temperature": {
            "transfer": TEACHER,
            "baseline": TEACHER,
            "resolutions": ENSEMBLE,
            "int8_retune": None,
        },
        "size_penalty": _PATCH_ALONE,
        "rounding_step": _PATCH_ALONE,
        "through_int8": _PATCH_ALONE,
        "share_head": _PATCH_ALONE,
        "share_scales": _PATCH_ALONE,
    }
)
"""Keys of `TrainConfig` that not every method reads: the methods that do, each with what it needs
to read them, None for nothing."""
FUNCTIONS: Mapping[str, str] = MappingProxyType(
    {
        "train_patch": "transfer",
        "train_baseline": "baseline",
        "train_tasks": "tasks",
        "train_resolutions": "resolutions",
        "train_many_patches": "many",
        "retune_patch_int8": "int8_retune",
    }
)
"""The method of each function that trains."""

OWN_TRAINING = ("augment", "label_smoothing", "mixup", "cutmix")
"""Keys of `TrainConfig` that a task of a joint run can have of its own."""


def choose_device(config: TrainConfig) -> torch.device:
    """The GPU where there is one and the settings allow it."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda, but torch sees no GPU here; use device auto or cpu")
    return torch.device(config.device)


def find_unread(
    config: TrainConfig, method: str, has: Collection[str] = ()
) -> Iterator[tuple[str, str | None]]:
    """Keys of ``config`` that are not at their default and that ``method`` never reads, each with
    what it reads them with (see `READERS`); None where it reads them with nothing.

    A distillation weight of 0 is what a run without a teacher has: it asks for nothing.

    Args:
        has: of the needs, those that are met.
    """
    plain = TrainConfig()
    for key, methods in READERS.items():
        value, need = getattr(config, key), methods.get(method)
        if value == getattr(plain, key) or (method in methods and (need is None or need in has)):
            continue
        if need is None or key != "distillation_weight" or value != 0:
            yield key, need


def refuse_settings(config: TrainConfig, function: str, has: Collection[str] = ()) -> None:
    """Refuse what ``function`` would pass over in silence.

    Args:
        has: see `find_unread`.

    Raises:
        ConfigError: a setting that is not at its default and that ``function`` does not read.
    """
    for key, need in find_unread(config, FUNCTIONS[function], has):
        value, methods = getattr(config, key), READERS[key]
        if need is not None:
            rule = f"{function} reads it with {need} alone; give that or leave it out"
        elif methods is _PATCH_ALONE:
            rule = (
                f"{function} has no such form, only a patch that is trained on its own has "
                "(train_patch, method transfer); leave it out"
            )
        else:
            users = [name for name, method in FUNCTIONS.items() if method in methods]
            rule = f"{function} does not read it, only {', '.join(users)}; leave it out"
        raise ConfigError(f"training {key}={value!r}; {rule}")


def refuse_own_settings(task: str, own: TrainConfig, config: TrainConfig) -> None:
    """Refuse what a task of a joint run asks for and all tasks have in common.

    Raises:
        ConfigError: a setting of ``own`` outside `OWN_TRAINING` that is neither the run's
            (``config``) nor at its default.
    """
    plain = TrainConfig()
    for key in (field.name for field in fields(TrainConfig)):
        value, shared = getattr(own, key), getattr(config, key)
        if key not in OWN_TRAINING and value not in (shared, getattr(plain, key)):
            raise ConfigError(
                f"task {task!r}: {key}={value!r}; all tasks of a joint run have the run's, "
                f"{shared!r}, a task's own are {', '.join(OWN_TRAINING)}; set it for the run or "
                "leave it out"
            )


def refuse_statistics(which: str, statistics: str) -> None:
    """Refuse batch statistics of a baseline that trains the last layer alone.

    Raises:
        ConfigError: they are asked for.
    """
    if which == "head" and statistics != "frozen":
        raise ConfigError(
            f"baseline 'head' with statistics {statistics!r}; the last layer alone learns over "
            "normalisations as they are; use 'all' or leave statistics out"
        )


def check_resolutions(base: Base, resolutions: Sequence[int]) -> None:
    """Refuse a side that leaves the network's last feature map no whole cell.

    Raises:
        ConfigError: a resolution that is no whole number, or below the network's stride.
    """
    for px in resolutions:
        if not isinstance(px, int | np.integer) or isinstance(px, bool):
            raise ConfigError(
                f"resolution {px!r}; a side in pixels must be a whole number; write for instance 32"
            )
    stride = measure_stride(base)
    for px in resolutions:
        if px < stride:
            raise ConfigError(
                f"resolution {px} px; base {base.name!r} divides its input by {stride}, so each "
                f"side is at least {stride} px; choose {stride} or more"
            )


@torch.no_grad()
def measure_stride(base: Base) -> int:
    """By how much the network divides the side of its input: PROBE_PX over the side of the
    smallest feature map before the global pooling.
    """
    sides: list[int] = []

    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        if output.ndim == 4 and output.shape[-1] > 1:
            sides.append(output.shape[-1])

    structure = share_structure(base.module)
    for module in structure.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d):
            module.register_forward_hook(note)
    structure(torch.zeros(1, 3, PROBE_PX, PROBE_PX, device=next(base.module.parameters()).device))
    return PROBE_PX // min(sides, default=PROBE_PX)


def split_images(
    images: ImageDataset, validation: ImageDataset | None, config: TrainConfig
) -> tuple[ImageDataset, ImageDataset]:
    """What is trained on, and what chooses the epoch; they share no image.

    Raises:
        DataError: too little to learn from, or validation images of other classes.
    """
    check_classes(images)
    if validation is not None:
        if validation.classes != images.classes:
            raise DataError(
                f"{images.name}: validation classes {list(validation.classes)[:5]} are not the "
                f"training classes {list(images.classes)[:5]}; both need the same in the same "
                "order; correct the folders"
            )
        return images, validation
    share = config.validation_fraction
    return split(images, (1.0 - share, share), seed=config.seed)


def make_samples(images: ImageDataset, px: int, base: Base, device: torch.device) -> Samples:
    """Pixels at ``px`` as the network will see them; on a GPU where they fit."""
    with name_memory(f"{images.name}: {len(images)} images of {px} x {px} px"):
        pixels = images.at(px, base.preprocessing)
        samples = Samples.from_arrays(pixels, images.labels, base.preprocessing)
    samples = replace(samples, image_name=partial(_name_image, images))
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        if samples.inputs.nbytes < free_bytes - TRAINING_SHARE * total_bytes:
            return samples.to(device)
    return samples


def _name_image(images: ImageDataset, index: int) -> str:
    paths = image_paths(images.images)
    return str(paths[index]) if paths else str(images.position(index))


def make_pair(
    parts: tuple[ImageDataset, ImageDataset], px: int, base: Base, device: torch.device
) -> tuple[Samples, Samples]:
    """`make_samples` of what is trained on and of what is held out."""
    train, held = parts
    return make_samples(train, px, base, device), make_samples(held, px, base, device)


def scale_floors(base: Base, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bounds of the scales among ``tensors`` (by state-dict name), with their sign: gamma of a
    normalisation (negative only where no convolution comes before it), and explicit scales.
    """
    state = base.module.state_dict()
    floors = {}
    for key in sorted(tensors):
        stem, _, name = key.rpartition(".")
        if name == "patch_scale":
            floors[key] = torch.full_like(tensors[key], SCALE_FLOOR).detach()
        elif name == "weight" and f"{stem}.running_mean" in state:
            floors[key] = SCALE_FLOOR * state[key].to(tensors[key].device)
    return floors


def digest(settings: Any, samples: Sequence[Samples]) -> str:
    """SHA-256 of what a checkpoint belongs to: ``settings`` (JSON values), images and labels."""
    made = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in samples:
        made.update(part.inputs.cpu().numpy().data)
        made.update(part.labels.cpu().numpy().data)
    return made.hexdigest()


def describe_context(
    base: Base, settings: Sequence[Any], samples: Sequence[Samples]
) -> dict[str, Any]:
    """`Trainee.context` and ``former_context`` of ``base``, ``settings`` (JSON values) and
    images."""
    return {
        "context": digest([base.sha256, *settings], samples),
        "former_context": lambda: digest([base.tensors_sha256, *settings], samples),
    }
