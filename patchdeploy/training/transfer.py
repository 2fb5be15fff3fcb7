"""Transfer learning: a task's patch over a frozen base (paper, sections 2 and 5.2).

In: a base, labelled images, settings. Out: a `Patch` with a variant per resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError
from patchdeploy.lower import lower_base
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel, reestimate_statistics, trained_names
from patchdeploy.training.accuracy import accuracy, predict
from patchdeploy.training.compact import Compact, compact_forward, is_compact, make_compact
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.exportable import check_exportable
from patchdeploy.training.int8_aware import Int8Plan, open_int8
from patchdeploy.training.objective import (
    Forward,
    autocast,
    classification_loss,
    compile_forward,
)
from patchdeploy.training.optimizer import choose_scope
from patchdeploy.training.parts import part_of
from patchdeploy.training.preparation import (
    TEACHER,
    check_resolutions,
    choose_device,
    describe_context,
    make_pair,
    refuse_settings,
    scale_floors,
    split_images,
)
from patchdeploy.training.samples import Batch, Samples, Source
from patchdeploy.training.session import Session, open_session
from patchdeploy.training.statistics import draw_statistics_batches
from patchdeploy.training.trainee import Trainee
from patchdeploy.training.workers import SINGLE, Workers


def train_patch(
    base: Base,
    images: ImageDataset,
    config: TrainConfig | None = None,
    patch_config: PatchConfig | None = None,
    *,
    task: str | None = None,
    resolutions: Sequence[int] | None = None,
    validation: ImageDataset | None = None,
    teacher: Forward | None = None,
    workers: Workers = SINGLE,
    run_dir: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Patch:
    """Train one task's patch at every resolution, the largest first.

    Each further resolution starts from the one before it, and trains neither the head with
    ``config.share_head`` nor scales with ``config.share_scales``.

    Args:
        task: by default the data set's name.
        resolutions: sides in pixels; by default the base's own.
        validation: held out for the best epoch; by default a share of ``images``.
        teacher: normalised images [N, 3, H, W] -> scores of the same classes, to distil from.
        workers: the ranks that share the batches (`open_workers`).
        run_dir: metrics and a checkpoint per resolution; ``resume`` goes on from them.

    Raises:
        UnsupportedOperatorError, BaseError, ConfigError: it could not be exported
            (`check_exportable`).
        DataError: an empty set, a single class, or validation images of other classes.
        ConfigError: the patch owns nothing to train, a setting that is not read, or a resolution
            below the base's stride.
        TrainingError: the loss is not finite, or another rank has stopped.
        KeyboardInterrupt: Ctrl-C; with ``run_dir`` the run is saved first.
    """
    config, patch_config = config or TrainConfig(), patch_config or PatchConfig()
    name = task or images.name
    train, held = split_images(images, validation, config)
    sizes = sorted(set(resolutions or [base.preprocessing.input_size]), reverse=True)
    check_resolutions(base, sizes)
    if config.share_scales and patch_config.statistics != "frozen":
        raise ConfigError(
            f"training share_scales=True with patch statistics {patch_config.statistics!r}; each "
            "resolution's own statistics give its scales other values, so that nothing is shared; "
            "use statistics 'frozen' or leave share_scales out"
        )
    refuse_settings(config, "train_patch", {TEACHER} if teacher is not None else ())
    check_exportable(base, {name: images.classes}, sizes, config)
    model = PatchedModel(base, choose_device(config))
    metrics: dict[str, Any] = {"validation_top1": {}, "training_images": len(train)}
    before: dict[str, Tensor] | None = None
    plan = Int8Plan(images, resolutions=tuple(sizes))
    with open_session(config.epochs * len(sizes), workers, run_dir, resume, quiet) as session:
        run = TransferRun(model, name, config, teacher, session, plan)
        for px in sizes:
            model.add_task(name, images.classes, patch_config, px, start=before)
            samples = make_pair((train, held), px, base, model.device)
            metrics["validation_top1"][str(px)] = round(run.train(px, samples, before), 4)
            before = model.tensors(name, px)
    metrics |= {"settings": config.to_json()}
    return model.to_patch(name, metrics)


@dataclass(frozen=True)
class TransferRun:
    """One task over ``model``, resolution by resolution.

    Attributes:
        model: with the task attached at the resolutions so far.
        task: its name.
        session: what it runs in.
        int8: how ``config.through_int8`` is done; None where it cannot be.
    """

    model: PatchedModel
    task: str
    config: TrainConfig
    teacher: Forward | None
    session: Session
    int8: Int8Plan | None = None

    def train(
        self, px: int, samples: tuple[Samples, Samples], before: Mapping[str, Tensor] | None
    ) -> float:
        """Train the active task at ``px``; its validation top-1 in [0, 1]."""
        model, config = self.model, self.config
        tensors = model.tensors(self.task, px)
        self._estimate(samples[0])
        trained = self._choose(tensors, before)
        if not trained:
            return accuracy(model, samples[1], model.device)  # a shared head is all there is
        head = f"{model.base.head_name}."
        head_only = all(key.startswith(head) for key in trained)
        scope = choose_scope(model.base, "head" if head_only else "patch")
        compact = self._compact(px, tensors)
        rounded = model if compact is None else compact_forward(model, tensors, compact)
        forward: Forward = compile_forward(rounded, config)
        int8 = None
        if config.through_int8:
            used = dict if compact is None else compact.forward_tensors
            forward = int8 = open_int8(model, self.task, px, self.int8, config, forward, used)
        elif head_only and self._features_stay(tensors):
            forward, samples = cache_features(model, tensors, samples)
        trainee = Trainee(
            name=f"{self.task}@{px}",
            sources=(
                Source(
                    f"{self.task}@{px}",
                    *samples,
                    classes=len(model.classes(self.task)),
                    batch_size=config.batch_size,
                ),
            ),
            groups={scope: trained},
            state=tensors,
            floors=scale_floors(model.base, trained),
            losses=SingleLoss(
                forward,
                config,
                model.device,
                self.teacher,
                size_loss=None if compact is None else lambda: compact.size_loss(tensors),
            ),
            predict=lambda _, inputs: forward(inputs),
            coupled=True,
            **(self._context(samples) if self.session.run_dir is not None else {}),
            batch_statistics=model.config(self.task).statistics == "batch",
        )
        if int8 is not None:
            trainee = replace(trainee, state=tensors | int8.state, prepare=int8.prepare)
        result = self.session.fit(trainee, config, f"{px}.pt")
        if compact is not None:
            compact.finish(tensors)
        return result.mean_top1

    def _compact(self, px: int, tensors: Mapping[str, Tensor]) -> Compact | None:
        """What the settings ask for a small patch; needs the base lowered."""
        model = self.model
        if not is_compact(self.config):
            return None
        int8, base = self.int8, model.base
        graph = lower_base(base, [px]) if int8 is None else int8.lower(base, px)
        classes = len(model.classes(self.task))
        patch_config = model.config(self.task)
        return make_compact(graph, tensors, self.config, patch_config, classes, self._first(px))

    def _features_stay(self, tensors: Mapping[str, Tensor]) -> bool:
        """What the last layer reads of an image is the same in every epoch."""
        config = self.config
        moves = config.augment != "none" or config.mixup > 0 or config.cutmix > 0
        own_statistics = any(key.endswith("running_mean") for key in tensors)
        learns_statistics = own_statistics and self.model.config(self.task).statistics == "batch"
        return not (moves or learns_statistics or self.teacher is not None)

    def _first(self, px: int) -> dict[str, Tensor] | None:
        """The task's tensors at its largest resolution, which ``px`` is coded against; None if
        that is ``px`` itself."""
        largest = max(side for name, side in self.model.tasks if name == self.task)
        return None if largest == px else self.model.tensors(self.task, largest)

    def _estimate(self, train: Samples) -> None:
        if self.model.config(self.task).statistics == "reestimated":
            size, seed = self.config.batch_size, self.config.seed
            batches = draw_statistics_batches(train, size, seed, self.model.device)
            reestimate_statistics(self.model, batches)

    def _choose(
        self, tensors: Mapping[str, Tensor], before: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """What gradients reach at this resolution; the rest of ``tensors`` is told so."""
        base, patch_config = self.model.base, self.model.config(self.task)
        names = trained_names(base, patch_config) & set(tensors)
        if before is not None and self.config.share_head:
            names = frozenset(key for key in names if part_of(base, key) != "head")
        if before is not None and self.config.share_scales:
            names = frozenset(key for key in names if part_of(base, key) != "gamma")
        if not names and before is None:
            raise ConfigError(
                f"patch kinds {list(patch_config.kinds)} select nothing to train in base "
                f"{base.name!r}; add a kind or widen include"
            )
        for key, value in tensors.items():
            value.requires_grad_(key in names)
        return {key: tensors[key] for key in sorted(names)}

    def _context(self, samples: Sequence[Samples]) -> dict[str, Any]:
        """Base, patch settings, images, and the resolutions before this one, whose tensors it
        begins with."""
        model = self.model
        before = [px for name, px in model.tasks if name == self.task]
        classes = list(model.classes(self.task))
        settings = [model.config(self.task).to_json(), before, classes]
        return describe_context(model.base, settings, samples)


@dataclass(frozen=True)
class SingleLoss:
    """Losses of sources that are run one by one through the same ``forward``.

    Attributes:
        size_loss: what the coded size adds to each (see `training.compact`).
    """

    forward: Forward
    config: TrainConfig
    device: torch.device
    teacher: Forward | None = None
    size_loss: Callable[[], Tensor] | None = None

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Mapping[int, Tensor]]:
        """See `Trainee.losses`."""
        for batch in batches:
            with autocast(self.config, self.device):
                scores = self.forward(batch.inputs)
                taught = None
                if self.teacher is not None:
                    with torch.no_grad():
                        taught = self.teacher(batch.inputs)
            loss = classification_loss(scores, batch.targets, self.config, taught)
            yield {batch.source: loss if self.size_loss is None else loss + self.size_loss()}


@torch.no_grad()
def cache_features(
    model: PatchedModel, tensors: Mapping[str, Tensor], samples: tuple[Samples, Samples]
) -> tuple[Forward, tuple[Samples, Samples]]:
    """Only the last layer learns: compute what it reads once, and train on that."""
    name = model.base.head_name
    head = model.structure.get_submodule(name)
    if not isinstance(head, nn.Linear):
        return model, samples
    features: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    cached = []
    try:
        for part in samples:
            features.clear()
            predict(model, part, model.device)
            inputs = torch.cat(features)  # on the model's device, where images may not fit
            labels = part.labels.to(inputs.device)
            cached.append(replace(part, inputs=inputs, labels=labels, preprocessing=None))
    finally:
        handle.remove()
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    return (lambda inputs: nn.functional.linear(inputs, weight, bias)), (cached[0], cached[1])
