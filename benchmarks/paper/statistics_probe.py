#!/usr/bin/env python
"""Why new statistics cost the last layer accuracy (Table 6): which statistics, in which layers, and
whether any last layer over them could win it back.

In: the ImageNet backbone, packaged images. Out: results/statistics_probe.json, and a line for each
row and column; a note of docs/paper.md uses it. Mean and variance of some layers are measured anew
on 256 training images, layer by layer, each on what the layers before it now give; nothing else
changes. A last layer is then fitted in closed form (ridge regression on the classes), its penalty
chosen on held out training images, so that no learning rate or number of epochs decides. Beside the
accuracy: the effective rank of the features, exp(entropy of the spectrum of their covariance) (Roy
and Vetterli 2007).

    python benchmarks/paper/statistics_probe.py [--seeds 3] [--jobs 2]
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from cells import SEEDS, Cell, Record, by_place, run_cells
from networks import open_network
from notes import ALL_NEW, EARLY, LATE, OLD, ONE_FACTOR, STATISTICS_PROBE
from numpy.typing import NDArray
from torch import Tensor, nn
from transfer_cell import draw
from transfer_tables import DATASETS

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, load_packaged, split
from patchdeploy.training.preparation import make_samples
from patchdeploy.training.samples import Samples, normalize

SIDES: Mapping[int, tuple[Sequence[str], int]] = {
    64: ((OLD, ALL_NEW, ONE_FACTOR, EARLY, LATE), 1000),
    160: ((OLD, ALL_NEW), 500),
}
"""Side in pixels -> (rows, images to train on and to test on, for time's sake). The tables run at
64 px; the backbone was trained at 160 px."""
MEASURED = 256
HELD_SHARE = 0.2
PENALTIES = tuple(10.0**k for k in range(-1, 7))
BATCH = 100


def list_cells(seeds: int) -> list[Cell]:
    """Every rule on every data set."""
    cells = []
    for px, (rows, images) in SIDES.items():
        common = {"network": "imagenet", "images": images, "tests": images, "px": px}
        cells += [
            Cell(row, f"{dataset}, {px} px", seed, {**common, "dataset": dataset, "row": row})
            for dataset in DATASETS
            for row in rows
            for seed in range(seeds)
        ]
    return cells


def measure_statistics(settings: Mapping[str, Any], seed: int) -> Record:
    """Accuracy of the best last layer, its penalty, and the effective rank of its features."""
    px, row = settings["px"], settings["row"]
    base = open_network(settings["network"], seed, px)
    images, test = load_packaged(settings["dataset"])
    images, test = draw(images, settings["images"], seed), draw(test, settings["tests"], 0)
    module = copy.deepcopy(base.module)
    with torch.no_grad():
        if paths := choose_layers(module, row):
            measured = make_samples(draw(images, MEASURED, seed), px, base, torch.device("cpu"))
            renormalize(module, paths, normalized(measured), one_factor=row == ONE_FACTOR)
        features = {
            part: describe_images(module, base, dataset, px)
            for part, dataset in zip(
                ("train", "held", "test"),
                (*split(images, (1 - HELD_SHARE, HELD_SHARE), seed=seed), test),
                strict=True,
            )
        }
    top1s = [fit_last_layer(features, penalty) for penalty in PENALTIES]
    best = max(range(len(PENALTIES)), key=lambda k: top1s[k]["held"])
    return {
        "validation_top1": round(top1s[best]["held"], 5),
        "test_top1": round(top1s[best]["test"], 5),
        "penalty": PENALTIES[best],
        "effective_rank": round(effective_rank(features["train"][0]), 1),
        "normalisations": len(paths),
    }


def choose_layers(module: nn.Module, row: str) -> list[str]:
    """The normalisations that a row measures anew, in the order of the network."""
    every = [path for path, one in module.named_modules() if isinstance(one, nn.BatchNorm2d)]
    half = len(every) // 2
    return {OLD: [], EARLY: every[:half], LATE: every[half:]}.get(row, every)


def renormalize(module: nn.Module, paths: Sequence[str], inputs: Tensor, one_factor: bool) -> None:
    """Write mean and variance of ``inputs`` into the layers at ``paths``, in one pass.

    ``one_factor``: all variances of a layer change by one factor, the geometric mean of what their
    own would be, so that the channels keep their sizes relative to each other.
    """

    def measure(layer: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(given[0], (0, 2, 3), correction=0)
        old = layer.get_buffer("running_var")
        if one_factor:
            ratio = torch.log((variance + layer.eps) / (old + layer.eps)).mean().exp()
            variance = old * ratio
        old.copy_(variance)
        layer.get_buffer("running_mean").copy_(mean)

    handles = [module.get_submodule(path).register_forward_pre_hook(measure) for path in paths]
    module(inputs)
    for handle in handles:
        handle.remove()


def normalized(samples: Samples) -> Tensor:
    """All images at once, as the network takes them."""
    return normalize(samples.inputs, samples.preprocessing)


def describe_images(
    module: nn.Module, base: Base, images: ImageDataset, px: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(what the head reads, float64 [N, F]; labels [N])."""
    found: list[Tensor] = []
    head = module.get_submodule(base.head_name)
    handle = head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    samples = make_samples(images, px, base, torch.device("cpu"))
    for part in batches(samples):
        module(part)
    handle.remove()
    return torch.cat(found).double().numpy(), images.labels


def batches(samples: Samples) -> Iterator[Tensor]:
    """Normalised images, `BATCH` at a time."""
    for part in torch.split(samples.inputs, BATCH):
        yield normalize(part, samples.preprocessing)


def fit_last_layer(
    features: Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]], penalty: float
) -> dict[str, float]:
    """Accuracy of ridge regression on the classes, fitted on "train", by part."""
    from sklearn.linear_model import RidgeClassifier

    fitted = RidgeClassifier(alpha=penalty).fit(*features["train"])
    return {part: float(fitted.score(*features[part])) for part in ("held", "test")}


def effective_rank(features: NDArray[np.float64]) -> float:
    """exp(entropy) of the spectrum of the covariance; how many directions carry the variance."""
    values = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    shares = values[values > 0] / values.sum()
    return math.exp(-float((shares * np.log(shares)).sum()))


def show(records: Mapping[str, Record]) -> None:
    """Test accuracy and effective rank of each row and column."""
    ranks = by_place(records, "effective_rank")
    for (row, column), top1 in by_place(records, "test_top1").items():
        rank = ranks[row, column].mean
        print(f"{row} | {column} | test {top1.percent()} | rank {rank:.0f} | n = {top1.count}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    cells = list_cells(arguments.seeds)
    show(run_cells(STATISTICS_PROBE, cells, measure_statistics, jobs=arguments.jobs, quick=False))


if __name__ == "__main__":
    main()
