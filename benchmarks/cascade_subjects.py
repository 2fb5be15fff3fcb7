"""The tasks that cascade.py measures: trained, exported, scored, and kept under out/.

In: a `CascadePlan`. Out: a `CascadeSubject`: a bundle with the task, and the int8 scores of every
resolution on images that no weight, epoch, range or step was chosen with. Each step that is done is
kept, so a stopped run is resumed after it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchdeploy.base import Base
from patchdeploy.bundle import Bundle, open_bundle
from patchdeploy.data import ImageDataset, load_idx, load_packaged, split
from patchdeploy.export import CodingConfig, export_bundle
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.runtime import Engine
from patchdeploy.runtime.task_scores import TaskScores, count_costs, score_images
from patchdeploy.training import ResolutionsConfig, TrainConfig, train_patch, train_resolutions

sys.path.insert(0, str(Path(__file__).resolve().parent / "paper"))
from networks import open_network

Log = Callable[[str], None]
Method = Literal["private", "summed", "ensemble", "largest"]
METHODS: dict[Method, str] = {
    "private": "each resolution alone, the largest first",
    "summed": "together, the sum of their losses",
    "ensemble": "together, their ensemble teaches each",
    "largest": "each alone, taught by the largest",
}
FASHION_FOLDERS = (Path("out/data/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist"))
"""Where Debian's package ``dataset-fashion-mnist`` puts its files, or a copy of them."""
FASHION = "fashion_mnist"
HELD = 0.15
LEAST_HELD = 40
"""Images that choose epochs and steps: 32 are the least that choosing steps takes."""
KINDS = PatchConfig(("scale_bias", "head"))


@dataclass(frozen=True)
class CascadePlan:
    """What is trained and scored, in plain JSON values: another plan is another cache entry.

    Attributes:
        network: see paper/networks.py.
        dataset: of `data.packaged`, or "fashion_mnist", all 70,000 images.
        sides: in pixels, ascending.
        train: images that train, calibrate and choose epochs and steps.
        unseen: images that are scored, at most; all others.
        method: of METHODS.
    """

    network: str
    dataset: str
    sides: tuple[int, ...]
    train: int
    unseen: int
    epochs: int
    method: Method = "private"
    batch: int = 32
    seed: int = 0

    @property
    def name(self) -> str:
        """Task and network, for tables."""
        return f"{self.dataset}, {self.network}"

    @property
    def key(self) -> str:
        """Of the cache entry."""
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.network}-{self.dataset}-{self.method}-{digest}"


@dataclass(frozen=True, eq=False)
class CascadeSubject:
    """One task, ready for cascades.

    Attributes:
        bundle: with the task at all sides.
        scores: of ``unseen``, in LiteRT.
        macs: of one image, by resolution.
        unseen: images that chose nothing.
    """

    plan: CascadePlan
    bundle: Bundle
    scores: TaskScores
    macs: dict[int, float]
    unseen: ImageDataset


def open_images(name: str) -> tuple[ImageDataset, ImageDataset]:
    """Training and test part.

    Raises:
        FileNotFoundError: Fashion-MNIST is not on this machine.
    """
    if name != FASHION:
        return load_packaged(name)
    for folder in FASHION_FOLDERS:
        if folder.is_dir():
            return load_idx(folder, "train", name=FASHION), load_idx(folder, "test", name=FASHION)
    raise FileNotFoundError(
        f"Fashion-MNIST is in none of {', '.join(map(str, FASHION_FOLDERS))}; install Debian's "
        "package dataset-fashion-mnist, or copy its four .gz files there"
    )


def draw_parts(plan: CascadePlan) -> tuple[ImageDataset, ImageDataset]:
    """(train, unseen), drawn by a seed of their own; no image is in both."""
    train, test = open_images(plan.dataset)
    order = np.random.default_rng(0).permutation(len(train))
    rest = train.subset(np.sort(order[plan.train :]))
    images = [*(np.asarray(one) for one in rest.images), *(np.asarray(one) for one in test.images)]
    labels = np.concatenate([rest.labels, test.labels])
    unseen = ImageDataset(plan.dataset, images, labels, train.classes)
    chosen = np.random.default_rng(1).permutation(len(unseen))[: plan.unseen]
    return train.subset(np.sort(order[: plan.train])), unseen.subset(np.sort(chosen))


def open_subject(plan: CascadePlan, cache: Path, log: Log) -> CascadeSubject:
    """Train, export and score, or read all that from ``cache``."""
    place = cache / plan.key
    train, unseen = draw_parts(plan)
    base = open_network(plan.network, plan.seed, max(plan.sides))
    share = max(HELD, min(LEAST_HELD / len(train), 0.5))
    kept, held = split(train, (1 - share, share), seed=0)
    if not (place / "patch" / "done").exists():
        log(f"{plan.name}: training at {', '.join(map(str, plan.sides))} px, {plan.method}")
        patch = train_method(plan, base, kept, held)
        patch.save_pretrained(place / "patch")
        (place / "patch" / "done").touch()
    patch = Patch.from_pretrained(place / "patch")
    if not (place / "bundle" / "manifest.json").exists():
        log(f"{plan.name}: exporting")
        made = place / "bundle.part"
        shutil.rmtree(made, ignore_errors=True)
        export_bundle(
            made,
            base,
            [patch],
            {patch.task: kept},
            coding=CodingConfig(),
            validation={patch.task: held},
            unsigned=True,
        )
        made.rename(place / "bundle")
    bundle = open_bundle(place / "bundle")
    with Engine.open(bundle, "litert") as engine:
        macs = count_costs(engine, patch.task)
        scores = _score(engine, unseen, patch.task, place / "scores.npz", log, plan.name)
    return CascadeSubject(plan, bundle, scores, macs, unseen)


def _score(
    engine: Engine, unseen: ImageDataset, task: str, path: Path, log: Log, name: str
) -> TaskScores:
    if not path.exists():
        log(f"{name}: scoring {len(unseen):,} images")
        labels = unseen.labels_as(engine.classes(task))
        assert labels is not None
        found = score_images(engine, unseen, labels, task)
        arrays = {f"codes {px}": codes for px, codes in found.codes.items()}
        scales = {f"scale {px}": np.float64(one) for px, one in found.output_scales.items()}
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, labels=found.labels, **arrays, **scales)
        path.with_suffix(".part").rename(path)
    with np.load(path) as kept:
        sides = sorted(int(name.split()[1]) for name in kept.files if name.startswith("codes"))
        codes = {px: kept[f"codes {px}"] for px in sides}
        return TaskScores(codes, kept["labels"], {px: float(kept[f"scale {px}"]) for px in sides})


def train_method(plan: CascadePlan, base: Base, train: ImageDataset, held: ImageDataset) -> Patch:
    """The patch of all sides by the plan's method."""
    config = TrainConfig(epochs=plan.epochs, batch_size=plan.batch, seed=plan.seed)
    if plan.method in ("summed", "ensemble"):
        settings = ResolutionsConfig(
            learn="patch",
            teach="ensemble" if plan.method == "ensemble" else "none",
            statistics="frozen",
        )
        return train_resolutions(base, train, plan.sides, config, settings, validation=held).patch
    if plan.method == "private":
        return train_patch(base, train, config, KINDS, resolutions=plan.sides, validation=held)
    largest = max(plan.sides)
    first = train_patch(base, train, config, KINDS, resolutions=[largest], validation=held)
    model = PatchedModel(base)
    model.load_patch(first)
    model.set_active_task(first.task, largest)
    model.eval()

    def teach(inputs: Tensor) -> Tensor:
        """The largest resolution's scores of the student's pixels, enlarged."""
        with torch.no_grad():
            enlarged = functional.interpolate(
                inputs, (largest, largest), mode="bilinear", antialias=True
            )
            scores: Tensor = model(enlarged)
        return scores

    return train_patch(
        base, train, config, KINDS, resolutions=plan.sides, validation=held, teacher=teach
    )


def list_sides(sides: Sequence[int]) -> str:
    """For tables."""
    return " / ".join(map(str, sides))
