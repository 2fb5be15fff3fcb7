"""One cell of the transfer tables: train a patch, the last layer or all weights; test it once.

The best epoch is chosen on images held out of the training ones; test images are looked at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from cells import Record
from networks import open_network

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, load_packaged
from patchdeploy.errors import NonFiniteLossError
from patchdeploy.patch import PatchConfig, count_parameters
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training import TrainConfig, evaluate, train_baseline, train_patch

ALL = "all"


def measure_transfer(settings: Mapping[str, Any], seed: int) -> Record:
    """Settings: network, dataset, images (to train on), tests (at most), px, epochs, batch, kinds
    (a list, or "all"), statistics, rate (or None), augment.
    """
    return train_and_test(settings, seed, *draw_parts(settings["dataset"], settings, seed))


def draw_parts(
    name: str, settings: Mapping[str, Any], seed: int
) -> tuple[ImageDataset, ImageDataset]:
    """The training images that a seed draws from a packaged set, and its test images."""
    train, test = load_packaged(name)
    return draw(train, settings["images"], seed), draw(test, settings["tests"], 0)


def train_and_test(
    settings: Mapping[str, Any], seed: int, train: ImageDataset, test: ImageDataset
) -> Record:
    """One cell on these images."""
    base = open_network(settings["network"], seed, settings["px"])
    config = TrainConfig(
        epochs=settings["epochs"],
        batch_size=settings["batch"],
        learning_rate=settings.get("rate"),
        augment=settings.get("augment", "none"),
        device="auto",
        seed=seed,
    )
    try:
        return _train(base, train, test, config, settings, seed)
    except NonFiniteLossError as error:  # a rate far too large: the cell says so
        return failed_record(train, test, error)


def _train(
    base: Base,
    train: ImageDataset,
    test: ImageDataset,
    config: TrainConfig,
    settings: Mapping[str, Any],
    seed: int,
) -> Record:
    px, kinds, statistics = settings["px"], settings["kinds"], settings["statistics"]
    if kinds == ALL:
        result = train_baseline(
            base, train, "all", config, resolution=px, statistics=statistics, quiet=True
        )
        top1 = evaluate(result.module, test, px, base)[0]
        return _record(top1, result.validation_top1, result.parameters, test)
    patch_config = PatchConfig(tuple(kinds), statistics=statistics, head_seed=seed)
    patch = train_patch(base, train, config, patch_config, resolutions=[px], quiet=True)
    model = PatchedModel(base)
    model.load_patch(patch)
    top1 = evaluate(model, test, px, base)[0]
    trained = count_parameters(base, patch_config, len(train.classes))["trained"]
    return _record(top1, patch.metrics["validation_top1"][str(px)], trained, test)


def failed_record(train: ImageDataset, test: ImageDataset, error: NonFiniteLossError) -> Record:
    """Of a run whose loss was not finite: chance, which is what guessing reaches."""
    chance = 1.0 / len(train.classes)
    note = f"counted as chance, one in {len(train.classes)}: {error}"
    return {**_record(chance, chance, 0, test), "failed": note}


def _record(top1: float, validation: float, parameters: int, test: ImageDataset) -> Record:
    return {
        "test_top1": round(top1, 5),
        "validation_top1": round(validation, 5),
        "parameters": parameters,
        "test_images": len(test),
    }


def draw(images: ImageDataset, count: int, seed: int) -> ImageDataset:
    """``count`` of the images (or all), drawn by ``seed``, in their own order."""
    if count >= len(images):
        return images
    order = np.random.default_rng(seed).permutation(len(images))[:count]
    return images.subset(np.sort(order))
