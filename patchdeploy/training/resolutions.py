"""One network at several resolutions: scales and biases of its own for each (paper, section 5.4).

In: a base, one labelled set, sides in pixels. Out: a base and one patch with a variant for each
resolution, which exports as a signature each. Every step runs all resolutions on the same images;
by default their ensemble teaches each of them (RS-Nets, Wang et al., ECCV 2020), and the paper's
plain sum of losses is the baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patch.forward import run_structure
from patchdeploy.patch.tensors import random_head
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.exportable import check_exportable
from patchdeploy.training.joint import JointModel, Member, make_joint
from patchdeploy.training.objective import (
    autocast,
    classification_loss,
    compile_forward,
    distillation_loss,
)
from patchdeploy.training.optimizer import choose_scope
from patchdeploy.training.preparation import (
    ALL_WEIGHTS,
    ENSEMBLE,
    check_resolutions,
    choose_device,
    describe_context,
    make_pair,
    refuse_settings,
    split_images,
)
from patchdeploy.training.samples import Batch, Source
from patchdeploy.training.session import open_session
from patchdeploy.training.trainee import Trainee
from patchdeploy.training.workers import SINGLE, Workers

Learn = Literal["all", "patch"]
Teach = Literal["ensemble", "none"]
MIXTURE = "ensemble/logits"


@dataclass(frozen=True)
class ResolutionsConfig:
    """What is private, what learns, what teaches.

    Attributes:
        learn: "all" weights (a new base comes out), or the "patch" over the frozen base.
        private: each resolution has scales and biases of its own; False is the baseline that
            shares everything ("All shared" of Table 5).
        teach: "ensemble" distillation over the resolutions, or "none" (the paper's sum of losses).
        statistics: of the normalisations: "batch" (each resolution's own; what learning all
            weights wants) or "frozen".
    """

    learn: Learn = "all"
    private: bool = True
    teach: Teach = "ensemble"
    statistics: Literal["frozen", "batch"] = "batch"

    def __post_init__(self) -> None:
        for key, choices in (
            ("learn", get_args(Learn)),
            ("teach", get_args(Teach)),
            ("statistics", ("frozen", "batch")),
        ):
            if getattr(self, key) not in choices:
                raise ConfigError(
                    f"resolutions {key}={getattr(self, key)!r}; it must be "
                    f"{' or '.join(choices)}; correct it"
                )
        if self.learn == "patch" and not self.private:
            raise ConfigError(
                "resolutions learn='patch' with private=False; resolutions that share scales and "
                "biases over a frozen base would train the head alone; set private to True, or "
                "learn to 'all'"
            )

    def needs_met(self, resolutions: int) -> frozenset[str]:
        """Of what settings need to be read (`preparation.READERS`), what a run at so many has."""
        met = {ALL_WEIGHTS: self.learn == "all", ENSEMBLE: self.taught(resolutions)}
        return frozenset(need for need, is_met in met.items() if is_met)

    def taught(self, resolutions: int) -> bool:
        """Whether an ensemble of so many teaches each of them."""
        return self.teach == "ensemble" and resolutions > 1


@dataclass(frozen=True)
class ResolutionsResult:
    """What a run over resolutions made.

    Attributes:
        base: new where all weights learned, else the one that was given.
        patch: a variant for each resolution, one head for all.
        validation_top1: in [0, 1], by resolution.
    """

    base: Base
    patch: Patch
    validation_top1: Mapping[int, float]


def train_resolutions(
    base: Base,
    images: ImageDataset,
    resolutions: Sequence[int],
    config: TrainConfig | None = None,
    settings: ResolutionsConfig | None = None,
    *,
    task: str | None = None,
    validation: ImageDataset | None = None,
    workers: Workers = SINGLE,
    run_dir: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> ResolutionsResult:
    """Train one network at all ``resolutions`` together.

    Raises:
        UnsupportedOperatorError, BaseError, ConfigError: it could not be exported
            (`check_exportable`).
        ConfigError: no resolution, one below the base's stride, a setting that is not read, or
            more ranks than images.
        DataError: a set that nothing can be learned from.
        TrainingError: a loss that is not finite, or a rank that stopped.
    """
    config, settings = config or TrainConfig(), settings or ResolutionsConfig()
    sizes = sorted(set(resolutions), reverse=True)
    refuse_settings(config, "train_resolutions", settings.needs_met(len(sizes)))
    if not sizes:
        raise ConfigError("resolutions []; a network runs at 1 at least; name sides in pixels")
    check_resolutions(base, sizes)
    name = task or images.name
    check_exportable(base, {name: images.classes}, sizes, config)
    parts = split_images(images, validation, config)
    model, patch_config = _make_model(base, name, sizes, images, config, settings)
    sources = []
    for px in sizes:
        train, held = make_pair(parts, px, base, model.device)
        label = f"{name}@{px}"
        sources.append(Source(label, train, held, len(images.classes), config.batch_size))
    losses = _ResolutionLosses(model, tuple(one.name for one in sources), config, settings)
    groups, state = model.groups(), model.state()
    if losses.mixture is not None:
        scope = "private" if "shared" in groups else choose_scope(base, "patch")
        groups[scope] = {**groups.get(scope, {}), MIXTURE: losses.mixture}
        state[MIXTURE] = losses.mixture
    known = [vars(settings), list(images.classes)]
    everything = [one for source in sources for one in (source.train, source.validation)]
    trainee = Trainee(
        name=name,
        sources=tuple(sources),
        groups=groups,
        state=state,
        floors=model.floors(),
        losses=losses,
        predict=lambda source, inputs: model.forward(sources[source].name, inputs),
        coupled=True,
        **(describe_context(base, known, everything) if run_dir is not None else {}),
        batch_statistics=settings.statistics == "batch",
    )
    with open_session(config.epochs * len(sizes), workers, run_dir, resume, quiet) as session:
        result = session.fit(trainee, config, "resolutions.pt")
    top1 = dict(zip(sizes, result.validation_top1, strict=True))
    metrics = {
        "validation_top1": {str(px): round(value, 4) for px, value in top1.items()},
        "training_images": len(parts[0]),
        "settings": config.to_json(),
    }
    made = model.make_base(f"{base.name} at several resolutions") if _renews(settings) else base
    variants = {px: f"{name}@{px}" for px in sizes}
    patch = model.make_patch(made, name, images.classes, variants, patch_config, metrics)
    return ResolutionsResult(made, patch, top1)


def _renews(settings: ResolutionsConfig) -> bool:
    return settings.learn == "all"


def _make_model(
    base: Base,
    name: str,
    sizes: Sequence[int],
    images: ImageDataset,
    config: TrainConfig,
    settings: ResolutionsConfig,
) -> tuple[JointModel, PatchConfig]:
    kinds: tuple[Literal["scale_bias", "head"], ...] = ("scale_bias", "head")
    if not settings.private:
        kinds = ("head",)
    patch_config = PatchConfig(kinds, statistics=settings.statistics)
    members = [Member(f"{name}@{px}", len(images.classes), patch_config) for px in sizes]
    head = random_head(base, len(images.classes), patch_config.head_seed)
    model = make_joint(
        base,
        members,
        choose_device(config),
        shared_head=head,
        learn_shared=_renews(settings),
        run=compile_forward(run_structure, config),
    )
    return model, patch_config


class _ResolutionLosses:
    """All resolutions of one batch of images, and what their ensemble teaches."""

    def __init__(
        self,
        model: JointModel,
        names: tuple[str, ...],
        config: TrainConfig,
        settings: ResolutionsConfig,
    ) -> None:
        self.model, self.names, self.config = model, names, config
        self.mixture: Tensor | None = None
        if settings.taught(len(names)):
            self.mixture = torch.zeros(len(names), device=model.device, requires_grad=True)

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Mapping[int, Tensor]]:
        if self.mixture is None:
            for batch in batches:
                loss = classification_loss(self._scores(batch), batch.targets, self.config)
                yield {batch.source: loss}
            return
        scores = [self._scores(batch).float() for batch in batches]
        losses = [
            classification_loss(one, batch.targets, self.config)
            for one, batch in zip(scores, batches, strict=True)
        ]
        taught = teach_by_ensemble(
            scores, batches[0].targets, self.mixture, self.config.temperature
        )
        yield {
            batch.source: own + more
            for batch, own, more in zip(batches, losses, taught, strict=True)
        }

    def _scores(self, batch: Batch) -> Tensor:
        with autocast(self.config, self.model.device):
            scores: Tensor = self.model.forward(self.names[batch.source], batch.inputs)
        return scores


def teach_by_ensemble(
    scores: Sequence[Tensor], targets: Tensor, mixture: Tensor, temperature: float = 1.0
) -> list[Tensor]:
    """Ensemble distillation over resolutions, a loss for each (RS-Nets, section 3.3, as we read
    it).

    With z_s the scores at resolution s, the largest first, and a = softmax(mixture), the
    ensemble is z_m = sum_s a_s z_s. Its cross entropy teaches the mixture alone. Every
    resolution then learns from the ensemble and from each larger resolution:

        2 / (S + 1) * sum over t in {m, 1 .. s-1} of KL(p_t || p_s)

    Teachers receive no gradient.

    Args:
        scores: float32 [N, classes] by resolution, the largest first.
        targets: int64 [N] or float32 [N, classes].
        mixture: float32 [S].
    """
    count = len(scores)
    weights = torch.softmax(mixture, 0)
    frozen = torch.stack([one.detach() for one in scores])
    ensemble = (weights[:, None, None] * frozen).sum(0)
    ensemble_loss = torch.nn.functional.cross_entropy(ensemble, targets)
    losses = []
    for s, student in enumerate(scores):
        teachers = [ensemble, *scores[:s]]
        taught = [distillation_loss(student, teacher, temperature) for teacher in teachers]
        losses.append(2.0 / (count + 1) * torch.stack(taught).sum() + ensemble_loss / count)
    return losses
