"""The tasks that patch_bytes.py codes: trained, quantised, and kept under out/.

In: a `TaskPlan`. Out: a `CodedTask`: slot values at every resolution, and the images that steps
are chosen on (held out of training) and that accuracies are measured on (never looked at before).
Training is most of the time, so a task that is done is read from its cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged, split
from patchdeploy.export import Exporter
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.slots import PatchValues
from patchdeploy.storage import write_atomic
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training.accuracy import predict
from patchdeploy.training.preparation import make_pair
from patchdeploy.training.samples import Samples

sys.path.insert(0, str(Path(__file__).resolve().parent / "paper"))
from networks import open_network

Log = Callable[[str], None]
FILES = ("patch", "values.npz", "float.npz")
KINDS = PatchConfig(("scale_bias", "head"))


@dataclass(frozen=True)
class TaskPlan:
    """What is trained, in plain JSON values: another plan is another cache entry.

    Attributes:
        network, dataset: see `networks` and `data.packaged`.
        sides: in pixels, the largest first.
        train, held, test: images at most; ``held`` of the training part is kept out of it.
        rounding_step, size_penalty, share_scales: of `TrainConfig`; 0 and False train without a
            thought for bytes.
    """

    network: str
    dataset: str
    sides: tuple[int, ...]
    train: int
    held: int
    test: int
    epochs: int
    batch: int = 32
    rate: float = 0.01
    augment: str = "shift"
    rounding_step: float = 0.0
    size_penalty: float = 0.0
    share_scales: bool = False
    seed: int = 0

    @property
    def key(self) -> str:
        """Of the cache entry."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.network}-{self.dataset}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def config(self) -> TrainConfig:
        """Of the training run."""
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch,
            learning_rate=self.rate,
            augment=self.augment,
            rounding_step=self.rounding_step,
            size_penalty=self.size_penalty,
            share_scales=self.share_scales,
            seed=self.seed,
        )


@dataclass(frozen=True, eq=False)
class CodedTask:
    """One task, ready to be coded.

    Attributes:
        file: slot values by resolution, the largest first.
        float_scores: by resolution, float32 [N, classes] of the float patch on the test images.
        held, test: images by resolution are made where they are needed.
    """

    plan: TaskPlan
    file: PatchFile
    float_scores: Mapping[int, NDArray[np.float32]]
    held: ImageDataset
    test: ImageDataset
    preprocessing: Preprocessing

    def pixels(self, part: ImageDataset) -> dict[int, NDArray[np.uint8]]:
        """uint8 [N, px, px, 3] by resolution."""
        return {px: part.at(px, self.preprocessing) for px in self.plan.sides}

    def float_right(self, px: int) -> NDArray[np.bool_]:
        """bool [N]: which test images the float patch gets right."""
        return np.asarray(self.float_scores[px].argmax(1) == self.test.labels)


def open_base(plan: TaskPlan) -> Base:
    """The network that the plan starts from."""
    return open_network(plan.network, plan.seed, plan.sides[0])


def draw_parts(plan: TaskPlan) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """(train, held, test), each image in one of them; drawn by the plan's seed."""
    whole, test = load_packaged(plan.dataset)
    share = min(plan.held / len(whole), 0.25)
    train, held = split(whole, (1.0 - share, share), seed=plan.seed)
    return _draw(train, plan.train, plan.seed), held, _draw(test, plan.test, 0)


def _draw(images: ImageDataset, count: int, seed: int) -> ImageDataset:
    order = np.random.default_rng(seed).permutation(len(images))[:count]
    return images.subset(np.sort(order))


def open_task(plan: TaskPlan, base: Base, exporter: Exporter, cache: Path, log: Log) -> CodedTask:
    """Train, quantise and run the float patch on the test images, or read all that from ``cache``.

    A step that is done is kept, so a run that was stopped goes on after its last one.
    """
    train, held, test = draw_parts(plan)
    place = cache / plan.key
    place.mkdir(parents=True, exist_ok=True)
    write_atomic(place / "plan.json", json.dumps(asdict(plan), indent=1).encode())
    patch_place, values_place, float_place = (place / name for name in FILES)
    if not patch_place.exists():
        log("training")
        train_patch(
            base,
            train,
            plan.config,
            KINDS,
            resolutions=plan.sides,
            validation=held,
            run_dir=place / "run",
            resume=True,
            quiet=True,
        ).save_pretrained(patch_place)
    patch = Patch.from_pretrained(patch_place)
    if not values_place.exists():
        log("quantising")
        _save(values_place, _flat(exporter.quantize(patch, train)))
    if not float_place.exists():
        log("running the float patch")
        _save(float_place, _float_scores(plan, base, patch, test))
    with np.load(float_place) as stored:
        scores = {px: stored[str(px)] for px in plan.sides}
    file = PatchFile(
        task=plan.dataset.replace(".", "_"),
        classes=patch.classes,
        base_sha256=exporter.table.sha256,
        values=_unflat(values_place, plan.sides),
        metrics=dict(patch.metrics),
    )
    return CodedTask(plan, file, scores, held, test, base.preprocessing)


def _float_scores(
    plan: TaskPlan, base: Base, patch: Patch, test: ImageDataset
) -> dict[str, NDArray[np.float32]]:
    model = PatchedModel(base)
    model.load_patch(patch)
    found = {}
    for px in plan.sides:
        model.set_active_task(patch.task, px)
        samples: Samples = make_pair((test, test), px, base, model.device)[1]
        found[str(px)] = predict(model, samples, model.device).cpu().numpy()
    return found


def _flat(file: PatchFile) -> dict[str, NDArray[np.generic]]:
    return {
        f"{px}/{one.name}": getattr(values, one.name)
        for px, values in file.values.items()
        for one in fields(values)
    }


def _unflat(path: Path, sides: tuple[int, ...]) -> dict[int, PatchValues]:
    with np.load(path) as stored:
        return {
            px: PatchValues(**{one.name: stored[f"{px}/{one.name}"] for one in fields(PatchValues)})
            for px in sides
        }


def _save(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
