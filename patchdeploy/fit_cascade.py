"""Fit a cascade over a task's resolutions, certify it, and put it into the task's patch file.

In: a bundle, a task, labelled images that training has not seen. Out: a `CascadeFit` with what was
found on three splits of them, and on request the bundle with a new patch file that carries it.

The images are split once, by a seed: *choose* finds a path of cascades for each score, *certify*
tests the path (`patchdeploy.cascade.certify`), *report* says what comes of it on images that
neither has seen. All that is compared comes from the same int8 scores of one runtime.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle, add_task, open_bundle
from patchdeploy.cascade import (
    SCORE_KINDS,
    Answers,
    Cascade,
    Certificate,
    certify_path,
    greedy_cascade,
    search_path,
    smallest_tolerance,
)
from patchdeploy.cascade.certify import check_level
from patchdeploy.cascade.describe import CascadeRow, describe
from patchdeploy.cascade.scores import ScoreKind
from patchdeploy.cascade.search import Thresholds, run_thresholds
from patchdeploy.data import ImageDataset
from patchdeploy.data.overlap import without_copies
from patchdeploy.errors import CertificationError, ConfigError, DataError
from patchdeploy.evaluate import head_labels
from patchdeploy.patchfile import read_container, read_header
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.pack import Release
from patchdeploy.patchfile.payload import read_steps
from patchdeploy.runtime import Engine
from patchdeploy.runtime.task_scores import (
    Costs,
    Progress,
    TaskScores,
    count_costs,
    measure_costs,
    score_images,
)
from patchdeploy.storage import sha256_hex

if TYPE_CHECKING:
    from patchdeploy.export import Signing

LOGGER = logging.getLogger("patchdeploy.cascade")
LEAST_IMAGES = 40
"""Below, no split holds enough to find or show anything."""
VALIDATION_IMAGES = 200
"""About as many as validation accuracies are of; a patch does not say how many."""
SHARES = (0.25, 0.5, 0.25)
"""Of the images to choose, to certify and to report on: a test needs the most."""
ALPHAS = tuple(np.linspace(1.0, 0.9, 41).tolist())
"""Shares of the reference's accuracy that the greedy algorithm is tried with."""


@dataclass(frozen=True)
class CascadeConfig:
    """What a cascade may lose, and how it is looked for.

    Attributes:
        tolerance: greatest mean loss of accuracy against the reference, as a share in (0, 1).
        confidence: of the statement that it is not lost, in [0.5, 1). Both are rounded to
            millionths, as a patch file holds them.
        score: how sure a stage is; "auto": the best of all on the choosing split.
        cost: "macs" (multiply-accumulates of the convolutions) or "ms" (measured on this machine,
            from a decoded image, one image at a time, resizing included).
        reference: "largest" resolution, or the "best" one on the choosing split.
        runtime, threads: whose scores, and whose milliseconds.
        seed: of the split.
        uncertified: where nothing can be certified, take what the choosing split says.
        shares: of the images to choose, to certify and to report on; positive, 1 together.
    """

    tolerance: float = 0.01
    confidence: float = 0.95
    score: ScoreKind | Literal["auto"] = "auto"
    cost: Literal["macs", "ms"] = "macs"
    reference: Literal["largest", "best"] = "largest"
    runtime: str = "litert"
    threads: int = 1
    seed: int = 0
    uncertified: bool = False
    shares: tuple[float, float, float] = SHARES

    def __post_init__(self) -> None:
        self._check_types()
        check_level(self.tolerance, self.confidence)
        for name in ("tolerance", "confidence"):  # what is tested is what a patch file can say
            object.__setattr__(self, name, round(getattr(self, name) * 1e6) / 1e6)
        check_level(self.tolerance, self.confidence)
        if len(self.shares) != 3 or not (
            min(self.shares) > 0 and abs(sum(self.shares) - 1) <= 1e-6
        ):
            raise ConfigError(
                f"shares {self.shares}; each of the three parts of the images must be above 0, and "
                "they must be 1 together; leave them out for 25, 50 and 25 %"
            )
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}; it must be 0 or more; choose 0")
        self._check_choices()

    def _check_types(self) -> None:
        numbers = {"tolerance": self.tolerance, "confidence": self.confidence}
        try:
            numbers |= {f"shares[{k}]": share for k, share in enumerate(self.shares)}
        except TypeError:
            raise ConfigError(
                f"shares {self.shares!r:.80}; they must be three numbers; leave them out"
            ) from None
        for name, value in numbers.items():
            if type(value) not in (int, float):
                raise ConfigError(f"{name} {value!r:.80}; it must be a number; correct it")
        for name in ("seed", "threads"):
            value = getattr(self, name)
            if type(value) is not int:
                raise ConfigError(f"{name} {value!r:.80}; it must be a whole number; correct it")

    def _check_choices(self) -> None:
        choices = {
            "score": (*SCORE_KINDS, "auto"),
            "cost": ("macs", "ms"),
            "reference": ("largest", "best"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r}; it must be one of {', '.join(allowed)}"
                )


@dataclass(frozen=True)
class CascadeFit:
    """What was found.

    Attributes:
        task, runtime: as asked.
        cascade: what a patch would carry.
        images: in the splits choose, certify, report.
        costs: of a resolution, in ``cost_unit``.
        choosing: by score, the saving of its best cascade within the tolerance on the choosing
            split; the greatest was taken.
        greedy_saving: the same for Streeter's greedy algorithm.
        smallest_tolerance: the least that the certifying images show for the cheapest cascade that
            was found, as a share.
        rows: on the report split: the cascade, the greedy one, every resolution alone.
        models_sha256: of the models whose scores these are; empty where scores were given: such a
            fit is not written into a patch.
    """

    task: str
    runtime: str
    cascade: Cascade
    images: tuple[int, int, int]
    costs: Costs
    cost_unit: str
    choosing: Mapping[str, float]
    greedy_saving: float
    smallest_tolerance: float
    rows: tuple[CascadeRow, ...]
    models_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def fit_cascade(
    bundle: Bundle | Path | str,
    dataset: ImageDataset,
    task: str,
    config: CascadeConfig | None = None,
    *,
    progress: Progress | None = None,
) -> CascadeFit:
    """Find and certify a cascade over the resolutions of ``task``; nothing is written.

    Args:
        dataset: labelled images that neither training nor calibration has seen.
        progress: gets a line now and then.

    Raises:
        CertificationError: nothing cheaper than the reference could be certified, with the
            smallest tolerance that so many images could show; see ``uncertified``.
        DataError: too few images, or classes that are not the task's.
        ConfigError: the task has one resolution.
        UnknownTaskError: no such task.
    """
    config = config or CascadeConfig()
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    sides = opened.task(task).resolutions
    if len(sides) < 2:
        raise ConfigError(
            f"task {task!r} has one resolution, {sides[0]} px; a cascade needs two or more; train "
            "and export the task at several"
        )
    with Engine.open(opened, config.runtime, threads=config.threads) as engine:
        dataset = without_copies(dataset)
        labels = head_labels(engine.classes(task), task, dataset)
        _check_count(dataset)
        scores = score_images(engine, dataset, labels, task, progress)
        _warn_of_seen(scores, opened.task(task).metrics, dataset.name)
        costs = (
            count_costs(engine, task)
            if config.cost == "macs"
            else measure_costs(engine, dataset, task)
        )
    fit = fit_scores(scores, costs, config, task)
    return replace(fit, models_sha256=models_sha256(opened.header(task)))


def _warn_of_seen(scores: TaskScores, metrics: Mapping[str, Any], name: str) -> None:
    """Say it where the images look like those that training has seen: a certificate on them would
    promise what new images do not keep. The bundle knows training's validation accuracy alone."""
    known = metrics.get("validation_top1")
    px = max(scores.correct)
    before = known.get(str(px)) if isinstance(known, dict) else None
    if not isinstance(before, int | float) or not 0 <= before <= 1:
        return
    right = scores.correct[px]
    now = float(right.mean())
    pooled = (now + before) / 2
    error = np.sqrt(pooled * (1 - pooled) * (1 / len(right) + 1 / VALIDATION_IMAGES))
    if now - before > 3 * error:
        LOGGER.warning(
            "%s: %.1f %% right at %d px, where training's validation had %.1f %%; images that "
            "training has seen certify nothing; give others if these are such",
            name,
            100 * now,
            px,
            100 * before,
        )


def models_sha256(header: PatchHeader) -> str:
    """Of the hashes of all models that a patch makes: equal where scores are."""
    results = {name: dict(hashes) for name, hashes in header.results.items()}
    return sha256_hex(json.dumps(results, sort_keys=True).encode())


def _check_count(dataset: ImageDataset) -> None:
    if len(dataset) < LEAST_IMAGES:
        raise DataError(
            f"{dataset.name}: {len(dataset)} images; a cascade is chosen, certified and reported "
            f"on three parts of them, which takes at least {LEAST_IMAGES} (and about 2,000 for a "
            "tolerance of one point); give more images that training has not seen"
        )


def fit_scores(scores: TaskScores, costs: Costs, config: CascadeConfig, task: str) -> CascadeFit:
    """The fit from scores alone: split, choose, certify, report.

    Raises:
        CertificationError: see `fit_cascade`.
    """
    choose, certify, report = map(
        scores.subset, split_images(len(scores.labels), config.seed, config.shares)
    )
    if not (len(choose.labels) and len(certify.labels) and len(report.labels)):
        raise DataError(
            f"{len(scores.labels)} images in shares {config.shares}: one of the three parts is "
            "empty; give more images, or leave the shares out"
        )
    reference = _reference(choose, costs, config)
    kinds = SCORE_KINDS if config.score == "auto" else (config.score,)
    paths: dict[ScoreKind, list[Thresholds]] = {}
    choosing: dict[str, float] = {}
    for kind in kinds:
        answers = choose.answers(kind, costs, reference)
        paths[kind] = search_path(answers, config.tolerance)
        spent = run_thresholds(answers, paths[kind][-1]).cost
        choosing[kind] = 1 - spent / costs[reference]
    kind = max(kinds, key=lambda one: choosing[one])
    greedy = _best_greedy(choose.answers(kind, costs, reference), config.tolerance)
    greedy_saving = 1 - greedy[0] / costs[reference]
    path = paths[kind]
    if greedy_saving > choosing[kind]:  # the better of the two searches is certified
        path = [*path, greedy[1]]
    answers = certify.answers(kind, costs, reference)
    chosen, certificate, smallest = _certify(answers, config, path)
    answers = report.answers(kind, costs, reference)
    rows = [describe("cascade", answers, chosen), describe("greedy", answers, greedy[1])]
    rows += [describe(f"{px} px", answers, Thresholds((px,), ())) for px in answers.by_cost]
    return CascadeFit(
        task=task,
        runtime=config.runtime,
        cascade=Cascade(chosen.rule(kind, scores.ratios), certificate),
        images=(len(choose.labels), len(certify.labels), len(report.labels)),
        costs=dict(costs),
        cost_unit=config.cost,
        choosing=choosing,
        greedy_saving=greedy_saving,
        smallest_tolerance=smallest,
        rows=tuple(rows),
    )


def split_images(
    count: int, seed: int, shares: tuple[float, float, float] = SHARES
) -> tuple[NDArray[np.int64], ...]:
    """Positions of the images to choose, to certify and to report on; each image is in one."""
    order = np.random.default_rng(seed).permutation(count)
    ends = np.rint(np.cumsum(shares) * count).astype(int)
    return tuple(np.split(order, ends[:-1]))


def _reference(scores: TaskScores, costs: Costs, config: CascadeConfig) -> int:
    if config.reference == "largest":
        return max(scores.codes)
    right = {px: int(found.sum()) for px, found in scores.correct.items()}
    return max(right, key=lambda px: (right[px], -costs[px]))


def _best_greedy(answers: Answers, tolerance: float) -> tuple[float, Thresholds]:
    """The cheapest greedy cascade within ``tolerance`` on these images, and its cost."""
    budget = int(np.floor(tolerance * answers.count))
    found = [greedy_cascade(answers, alpha) for alpha in ALPHAS]
    outcomes = [(run_thresholds(answers, one), one) for one in found]
    within = [(out.cost, one) for out, one in outcomes if int(out.loss.sum()) <= budget]
    return min(within, key=lambda pair: pair[0])  # alpha 1 loses nothing


def _certify(
    answers: Answers, config: CascadeConfig, path: Sequence[Thresholds]
) -> tuple[Thresholds, Certificate, float]:
    """The cheapest cascade that the test certifies, and what so many images could show at best."""
    losses = [run_thresholds(answers, one).loss for one in path]
    good = certify_path(losses, config.tolerance, config.confidence)
    smallest = smallest_tolerance(losses[-1], config.confidence)
    certified = good > 1
    if not certified and not config.uncertified:
        raise CertificationError(_explain(config, len(path), answers, smallest))
    certificate = Certificate(
        answers.reference, config.tolerance, config.confidence, answers.count, certified
    )
    return path[good - 1] if certified else path[-1], certificate, smallest


def _explain(config: CascadeConfig, cascades: int, answers: Answers, smallest: float) -> str:
    images, reference = answers.count, answers.reference
    asked = f"{100 * config.tolerance:g} points at {100 * config.confidence:g} % confidence"
    if cascades == 1:
        return (
            f"no cascade costs less than {reference} px alone and stays within {asked} on the "
            "images that choose it; the smaller resolutions are too weak for this task, or too "
            "few images chose; train them together, allow more, or use that resolution"
        )
    return (
        f"no cascade cheaper than {reference} px alone can be certified within {asked} on "
        f"{images} images; they show {100 * smallest:.2f} points for the cheapest; give more "
        "images that training has not seen, allow a greater tolerance, or write it uncertified"
    )


def attach_cascade(
    bundle: Bundle | Path | str, fit: CascadeFit, signing: Signing | None = None
) -> Bundle:
    """Write ``fit``'s cascade into a new patch file of its task; all values keep their bits, and
    the task its float files and float scores.

    Args:
        signing: who signs it, and for how long (0: until the patch of now expires); by default
            nobody. It gets the next sequence number.

    Raises:
        ConfigError: the task's patch makes other models than the one that ``fit`` is of, or it
            does not say which (`fit_scores` alone); another writer replaced the task meanwhile.
        PatchRefusedError: the bundle's keys demand other signatures.
        StorageError: the disk is full; the bundle is as it was.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    entry = opened.task(fit.task)
    container = read_container(opened.read(entry.file))
    header = read_header(container)
    if fit.models_sha256 != models_sha256(header):
        raise ConfigError(
            f"the patch of task {fit.task!r} makes other models than the one that the cascade was "
            "fitted on, so its scores are others; fit the cascade again"
        )
    steps = read_steps(container.payload, header, opened.coding_table)
    # Its own number: a patch that came meanwhile has it, too, and is not replaced by an older one.
    release = Release(header.sequence + 1, header.expires)
    if signing is not None:
        release = signing.release(header.sequence + 1)
        release = replace(release, expires=signing.expires or header.expires)
    floats = {
        f"{fit.task}.{px}.onnx": opened.read(path)
        for px, path in entry.float_files.items()
        if (opened.path / path).exists()
    }
    scores = opened.manifest.float_scores(fit.task)  # what does not ship may be gone
    has_scores = scores is not None and (opened.path / scores).exists()
    return add_task(
        opened.path,
        replace(opened.patch(fit.task), cascade=fit.cascade),
        float_files=floats,
        float_scores=opened.read(scores) if scores and has_scores else None,
        replace_existing=True,
        steps=steps,
        release=release,
    )
