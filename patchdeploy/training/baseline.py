"""What a patch is compared with: the last layer alone, or all weights of a copy of the base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from patchdeploy.base import Base
from patchdeploy.base.layers import NORMS
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.patch import PatchConfig
from patchdeploy.patch.joined import normalizing_jointly
from patchdeploy.patch.reach import check_classes
from patchdeploy.patched_model import PatchedModel, merge_tensors, random_head
from patchdeploy.training.accuracy import predict
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.objective import Forward, compile_forward
from patchdeploy.training.optimizer import choose_scope
from patchdeploy.training.preparation import (
    TEACHER,
    check_resolutions,
    choose_device,
    describe_context,
    make_pair,
    make_samples,
    refuse_settings,
    refuse_statistics,
    split_images,
)
from patchdeploy.training.samples import Samples, Source
from patchdeploy.training.session import open_session
from patchdeploy.training.trainee import Trainee
from patchdeploy.training.transfer import SingleLoss, TransferRun
from patchdeploy.training.workers import SINGLE, Workers


@dataclass(frozen=True)
class BaselineResult:
    """What a baseline reached.

    Attributes:
        which: "head" (the last layer alone) or "all" (every weight of a copy of the base).
        module: the trained network, sharing nothing.
        parameters: values that were trained.
        validation_top1: in [0, 1], at the best epoch.
    """

    which: Literal["head", "all"]
    module: nn.Module
    parameters: int
    validation_top1: float


def train_baseline(
    base: Base,
    images: ImageDataset,
    which: Literal["head", "all"],
    config: TrainConfig | None = None,
    *,
    resolution: int | None = None,
    validation: ImageDataset | None = None,
    statistics: Literal["frozen", "batch"] = "frozen",
    teacher: Forward | None = None,
    workers: Workers = SINGLE,
    run_dir: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> BaselineResult:
    """Train what the paper compares a patch with, on the same images, epochs and batch.

    "all" starts from the base with a random head. Its normalisation statistics stay frozen as the
    patch's do, or are the batch's (``statistics``), which training from random weights needs.
    Dropout and stochastic depth are off, as in every method: runs of one seed have the same bits.

    Args:
        teacher, workers, run_dir, resume: as `train_patch`'s.

    Raises:
        ConfigError: another ``which``, a setting that is not read (``statistics`` of "head"
            among them), or a resolution below the base's stride.
        DataError: an empty set, or a single class.
        TrainingError: the loss is not finite, or another rank has stopped.
        KeyboardInterrupt: Ctrl-C; with ``run_dir`` the run is saved first.
    """
    config = config or TrainConfig()
    refuse_settings(config, "train_baseline", {TEACHER} if teacher is not None else ())
    if which not in ("head", "all"):
        raise ConfigError(f"baseline {which!r}; it must be head or all; choose one")
    refuse_statistics(which, statistics)
    check_classes(base, len(images.classes))
    px = resolution or base.preprocessing.input_size
    check_resolutions(base, [px])
    train, held = split_images(images, validation, config)
    device = choose_device(config)
    samples = make_pair((train, held), px, base, device)
    with open_session(config.epochs, workers, run_dir, resume, quiet) as session:
        if which == "head":
            model = PatchedModel(base, device)
            model.add_task("baseline", images.classes, PatchConfig(("head",)), px)
            run = TransferRun(model, "baseline", config, teacher, session)
            top1 = run.train(px, samples, None)
            parameters = sum(value.numel() for value in model.tensors().values())
            return BaselineResult("head", model.merge_and_unload().cpu(), parameters, top1)
        module = merge_tensors(base, random_head(base, len(images.classes), 0)).to(device)
        trainee = _all_weights(base, module, images, statistics, config, device, samples, teacher)
        top1 = session.fit(trainee, config, f"{px}.pt").mean_top1
    parameters = sum(value.numel() for value in trainee.trained.values())
    return BaselineResult("all", module.requires_grad_(False).eval().cpu(), parameters, top1)


def _all_weights(
    base: Base,
    module: nn.Module,
    images: ImageDataset,
    statistics: Literal["frozen", "batch"],
    config: TrainConfig,
    device: torch.device,
    samples: tuple[Samples, Samples],
    teacher: Forward | None,
) -> Trainee:
    module.requires_grad_(True)
    trained: dict[str, torch.Tensor] = {
        key: value
        for key, value in module.named_parameters()
        if key.rpartition(".")[0] not in base.unused
    }
    kept = dict(trained)
    if statistics == "batch":
        kept |= {key: value for key, value in module.named_buffers() if value.is_floating_point()}

    norms = [one for one in module.eval().modules() if isinstance(one, NORMS)]
    run = compile_forward(module, config)

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        learns = statistics == "batch" and torch.is_grad_enabled()
        for norm in norms:  # alone: dropout and stochastic depth are off in every method
            norm.training = learns
        with normalizing_jointly(norms if learns else ()):
            scores: torch.Tensor = run(inputs)
        return scores

    name = f"{images.name}@{samples[0].inputs.shape[1]} all"
    source = Source(name, *samples, classes=len(images.classes), batch_size=config.batch_size)
    return Trainee(
        name=name,
        sources=(source,),
        groups={choose_scope(base, "all"): trained},
        state=kept,
        floors={},
        losses=SingleLoss(forward, config, device, teacher),
        predict=lambda _, inputs: forward(inputs),
        coupled=True,
        **describe_context(base, [statistics, list(images.classes)], samples),
        batch_statistics=statistics == "batch",
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, images: ImageDataset, resolution: int, base: Base
) -> tuple[float, NDArray[np.float32]]:
    """(top-1 in [0, 1], scores float32 [N, classes]) of a float model on labelled images.

    Raises:
        DataError: no image.
        NonFiniteLossError: the largest score of an image is not finite, which is no answer.
    """
    if not len(images):
        raise DataError(f"{images.name}: 0 images; accuracy needs at least 1; add some")
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    if isinstance(model, PatchedModel):
        device = model.device
    samples = make_samples(images, resolution, base, device)
    was_training = model.training
    try:
        scores = predict(model.eval(), samples, device)
    finally:
        model.train(was_training)
    top1 = float((scores.argmax(1) == samples.labels.cpu()).double().mean())
    return top1, scores.numpy()
