"""From trained patches to a bundle: lowering, folding, quantising and writing in one place.

In: a `Base`, patches trained on it, calibration images. Out: a bundle folder with one int8 base
per runtime and one patch file per task. Needs torch (lowering and calibration do); a bundle
runs without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.base import Base
from patchdeploy.bundle import (
    Bundle,
    add_task,
    check_request,
    create_bundle,
    find_place,
    next_sequence,
    open_bundle,
    staged_bundle,
)
from patchdeploy.coding.choose_steps import PASSES, Score, choose_steps, fine_steps
from patchdeploy.coding.choose_steps import CodingConfig as CodingConfig
from patchdeploy.coding.decode import decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodingSteps
from patchdeploy.coding.make_table import make_coding_table
from patchdeploy.coding.table import CodingTable
from patchdeploy.convert import load_converter
from patchdeploy.data import ImageDataset
from patchdeploy.errors import (
    AlreadyAttachedError,
    ConfigError,
    EmptyCalibrationError,
    HeadCapacityError,
    UnknownResolutionError,
    WrongBaseError,
)
from patchdeploy.export_record import ScoreFloat, measure_task
from patchdeploy.fold import FoldedNetwork, fold_patch
from patchdeploy.graph import Graph, infer_shapes
from patchdeploy.lower import FloatScores, compare_patch, lower_base, make_pictures
from patchdeploy.lower.passes import IMAGE_IDENTITY
from patchdeploy.patch import Patch, recognise_patch
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.patchfile.pack import Release, Signer, make_thumbnails
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.base import quantize_base
from patchdeploy.quantize.calibrate import CalibrationConfig as CalibrationConfig
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.calibrate import spread as spread
from patchdeploy.quantize.check_calibration import check_pictures, check_ranges
from patchdeploy.quantize.model import QuantizedBase, flatten_variant
from patchdeploy.quantize.variant import quantize_variant
from patchdeploy.runtime.scoring import make_scorer
from patchdeploy.storage import write_atomic

FORMATS = ("tflite", "onnx")
CODING_IMAGES = 500
"""Calibration images, at most, that coding steps are chosen on."""
COMPARED_IMAGES = 2
"""Calibration images, at most, that graph and module are compared on, beside made pictures."""

EXPORT_REMEDY = "export it with the base that it was trained on"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Signing:
    """Who signs an export's patches.

    Attributes:
        trusted: the keys that the bundle pins.
        keys: private keys of some of them, at least its threshold.
        expires: Unix seconds from which on the patches are not installed; 0: never.
    """

    trusted: TrustedKeys
    keys: tuple[SigningKey, ...]
    expires: int = 0

    def release(self, sequence: int) -> Release:
        """Sequence number, expiry and signers.

        Raises:
            PatchKeyError: a key that is not among the trusted ones.
        """
        signers = tuple(Signer(key, self.trusted.find(key.public)) for key in self.keys)
        return Release(sequence, self.expires, signers)


@dataclass(frozen=True)
class Exporter:
    """A base lowered and quantised once, ready to export any number of patches.

    Attributes:
        base: the float base; patches name its content hash.
        graph: the lowered base with its float parameters.
        quantized: the shared integers.
        table: what patches are coded against.
    """

    base: Base
    graph: Graph
    quantized: QuantizedBase
    table: CodingTable

    @classmethod
    def prepare(
        cls,
        base: Base,
        *,
        head_capacity: int,
        depthwise_slots: bool = False,
        resolutions: Sequence[int] | None = None,
        exact_border: bool = False,
    ) -> Exporter:
        """Lower ``base`` and quantise its kernels.

        Args:
            head_capacity: rows of the exported head: the most classes a task may have.
            depthwise_slots: make the depthwise kernels slots, for patches that carry them.
            resolutions: sides in pixels that will be exported together; the graph is compared
                with the module at each. By default the base's input size.
            exact_border: see `export_bundle`.

        Raises:
            UnsupportedOperatorError: the network has an operator without a lowering rule.
            LoweringMismatchError: no graph is the module at every resolution.
        """
        graph = lower_base(base, resolutions, exact_border=exact_border)
        quantized = quantize_base(graph, head_capacity, patch_owned_depthwise=depthwise_slots)
        return cls(base, graph, quantized, make_coding_table(quantized))

    def fold(self, patch: Patch, resolution: int) -> FoldedNetwork:
        """``patch`` at ``resolution`` folded into the graph.

        Raises:
            WrongBaseError: the patch was trained on another base.
            UnknownResolutionError: the patch has no such variant.
        """
        check_base(patch, self.base.sha256)
        _check_variant(patch, resolution)
        return fold_patch(self.graph, patch.tensors(resolution), classes=len(patch.classes))

    def score_float(self, patch: Patch, resolution: int, pixels: NDArray[np.uint8]) -> FloatScores:
        """What the patch's float network says to ``pixels``, uint8 [n, px, px, 3], once graph and
        module agree.

        Raises:
            UnknownResolutionError: the patch has no such variant.
            LoweringMismatchError: they do not agree.
        """
        _check_variant(patch, resolution)
        return compare_patch(self.base, self.graph, patch, resolution, pixels)

    def quantize(
        self,
        patch: Patch,
        calibration: ImageDataset,
        resolutions: Sequence[int] | None = None,
        config: CalibrationConfig | None = None,
        progress: Progress | None = None,
    ) -> PatchFile:
        """The patch as slot values for every resolution; calibrates on ``calibration``.

        Args:
            progress: told the task and the resolution as each begins.

        Raises:
            EmptyCalibrationError: no image to calibrate on.
            ThinCalibrationError: one picture, or none but those of a single colour.
            HeadCapacityError: more classes than the exported head has rows.
            UnknownResolutionError: a resolution that the patch lacks or the network does not serve.
            LoweringMismatchError: folded and lowered, the patch computes something else than the
                module that trained it.
        """
        config = config or CalibrationConfig()
        check_patch(patch, self.base.sha256, self.quantized.head_capacity, calibration, config)
        chosen = spread(calibration, config.images)
        sizes = tuple(resolutions or sorted(patch.variants))
        for resolution in sizes:
            infer_shapes(self.graph, resolution, resolution)
            few = spread(chosen, COMPARED_IMAGES)
            self.score_float(patch, resolution, few.at(resolution, self.graph.preprocessing))
        values = {}
        for resolution in sizes:
            if progress is not None:
                progress(f"{patch.task} at {resolution} px, {len(chosen)} calibration images")
            network = self.fold(patch, resolution)
            images = chosen.at(resolution, self.graph.preprocessing)
            if resolution == sizes[0]:
                check_pictures(patch.task, images)
            ranges = calibrate(network, images, method=config.method)
            check_ranges(patch.task, self.graph, ranges)
            variant = quantize_variant(
                self.quantized,
                network,
                ranges,
                patch.task,
                resolution,
                bias_correction=config.correct_bias,
            )
            values[resolution] = flatten_variant(self.quantized, variant)
        return PatchFile(
            task=patch.task,
            classes=patch.classes,
            base_sha256=self.table.sha256,
            values=values,
            metrics=dict(patch.metrics),
        )


def _check_variant(patch: Patch, resolution: int) -> None:
    if resolution not in patch.variants:
        raise UnknownResolutionError(
            f"patch {patch.task!r} has no variant for {resolution} px; it was trained at "
            f"{', '.join(map(str, sorted(patch.variants)))} px; train that resolution too"
        )


def check_base(patch: Patch, base_sha256: str) -> None:
    """Raise unless ``patch`` was trained on the base with that content hash.

    Raises:
        WrongBaseError: it was trained on another.
    """
    if patch.base_sha256 != base_sha256:
        raise WrongBaseError(
            f"patch {patch.task!r} was trained on base {patch.base_sha256[:16]}, this base is "
            f"{base_sha256[:16]}; {EXPORT_REMEDY}"
        )


def check_patch(
    patch: Patch,
    base_sha256: str,
    head_capacity: int,
    calibration: ImageDataset,
    config: CalibrationConfig,
) -> None:
    """Raise what can be known before the base is lowered, which takes seconds.

    Raises:
        WrongBaseError, HeadCapacityError, EmptyCalibrationError: see `Exporter.quantize`.
    """
    check_base(patch, base_sha256)
    if len(calibration) == 0 or config.images < 1:
        raise EmptyCalibrationError(
            f"task {patch.task!r}: {min(len(calibration), config.images)} calibration images; "
            "activation ranges need at least 1 (64 to 512 are usual); pass training images"
        )
    if len(patch.classes) > head_capacity:
        raise HeadCapacityError(
            f"task {patch.task!r} has {len(patch.classes)} classes; the exported head has "
            f"{head_capacity} rows; export the base again with "
            f"head_capacity >= {len(patch.classes)}"
        )


def common_resolutions(patches: Sequence[Patch]) -> tuple[int, ...]:
    """The resolutions that every patch has, ascending.

    Raises:
        ConfigError: there are no patches, or they share no resolution.
    """
    if not patches:
        raise ConfigError("no patch to export; a bundle needs at least 1 task; train one first")
    shared = set.intersection(*(set(patch.variants) for patch in patches))
    if not shared:
        listed = "; ".join(f"{p.task}: {sorted(p.variants)}" for p in patches)
        raise ConfigError(f"the patches share no resolution ({listed}); train them at a common one")
    return tuple(sorted(shared))


def export_bundle(
    path: Path | str,
    base: Base,
    patches: Sequence[Patch],
    calibration: Mapping[str, ImageDataset],
    *,
    resolutions: Sequence[int] | None = None,
    formats: Sequence[str] = FORMATS,
    head_capacity: int | None = None,
    float_files: bool = False,
    exact_border: bool = False,
    config: CalibrationConfig | None = None,
    coding: CodingConfig | None = None,
    validation: Mapping[str, ImageDataset] | None = None,
    signing: Signing | None = None,
    unsigned: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write a bundle with every patch in it.

    Args:
        path: a folder that does not exist yet.
        calibration: training images by task name.
        resolutions: square sides in pixels; by default those that all patches have.
        formats: converter names.
        head_capacity: by default the largest class count among the patches.
        float_files: also write a stand-alone float32 ONNX per task and resolution (for
            debugging, GPU delegates and `verify`); these share nothing.
        exact_border: put a 1x1 convolution after the image, so that zero padding is the mean pixel
            of each channel and not one value for the three (`fold.border_error_bound`). Every later
            patch of the bundle follows. It costs time: docs/design.md has the figures. Where the
            channels have one mean it changes next to nothing.
        coding: choose the patches' steps under this budget; by default they have fine steps, which
            take half a second less for each task and twice the bytes.
        validation: by task name, images that the budget is kept on, which training has not seen;
            a task without takes its calibration images, on which a patch loses less than elsewhere.
        signing: who signs; this or ``unsigned`` must be given.
        unsigned: make a development bundle, which pins no key: everybody can write patches for it.
        progress: told what is being done, for people.

    Raises:
        AlreadyAttachedError: two patches of one task name.
        ConfigError, MissingExtraError: a converter that is not there; neither or both of
            ``signing`` and ``unsigned``.
        PatchdeployError: see `Exporter.quantize`; nothing is left at ``path``.
    """
    _check_signing(signing, unsigned)
    patches = [recognise_patch(base, patch, EXPORT_REMEDY) for patch in patches]
    chosen = check_request(Path(path), resolutions or common_resolutions(patches), formats)
    for name in formats:
        load_converter(name)
    capacity = head_capacity or max(len(patch.classes) for patch in patches)
    _check_names([patch.task for patch in patches])
    for patch in patches:
        images = _calibration_of(patch, calibration)
        check_patch(patch, base.sha256, capacity, images, config or CalibrationConfig())
    depthwise = any("depthwise" in patch.config.kinds for patch in patches)
    exporter = Exporter.prepare(
        base,
        head_capacity=capacity,
        depthwise_slots=depthwise,
        resolutions=chosen,
        exact_border=exact_border,
    )
    quantized = [
        exporter.quantize(patch, _calibration_of(patch, calibration), chosen, config, progress)
        for patch in patches
    ]
    with staged_bundle(find_place(Path(path))) as place:
        bundle = create_bundle(
            place,
            exporter.quantized,
            resolutions=chosen,
            formats=tuple(formats),
            float_base_sha256=base.sha256,
            trusted=None if signing is None else signing.trusted,
            table=exporter.table,
        )
        for patch, patch_file in zip(patches, quantized, strict=True):
            bundle = _add(
                bundle,
                patch_file,
                _calibration_of(patch, calibration),
                _floats(exporter, patch, chosen, float_files),
                partial(exporter.score_float, patch),
                coding,
                (validation or {}).get(patch.task),
                Release() if signing is None else signing.release(1),
                progress,
            )
    return Bundle(Path(path), bundle.manifest)


def _add(
    bundle: Bundle,
    patch_file: PatchFile,
    calibration: ImageDataset,
    floats: Mapping[str, Any],
    score_float: ScoreFloat,
    coding: CodingConfig | None,
    validation: ImageDataset | None,
    release: Release,
    progress: Progress | None,
    replace_existing: bool = False,
) -> Bundle:
    """Code, sign and add one task, with a self-test of two of its images."""
    sides = tuple(patch_file.values)
    preprocessing = bundle.manifest.preprocessing
    thumbnails = make_thumbnails(spread(calibration, 2).at(max(sides), preprocessing))
    steps: CodingSteps = fine_steps(patch_file.values, bundle.coding_table)
    if coding is not None:
        chosen = spread(calibration if validation is None else validation, CODING_IMAGES)
        images = {px: chosen.at(px, preprocessing) for px in sides}
        few = spread(chosen, coding.probe_images)
        probed = {max(sides): few.at(max(sides), preprocessing)}
        score = make_scorer(bundle, images, len(patch_file.classes))
        if progress is not None:
            progress(_describe_search(score, patch_file, bundle, coding, len(chosen)))
        labels = chosen.labels_as(patch_file.classes)
        if labels is None:  # no labels: then as the values that are not coded yet answer
            labels = score(max(sides), patch_file.values[max(sides)]).argmax(axis=1)
        choice = choose_steps(
            patch_file.values,
            labels,
            bundle.coding_table,
            score,
            coding,
            progress,
            probe_score=make_scorer(bundle, probed, len(patch_file.classes)),
        )
        patch_file, steps = replace(patch_file, values=choice.values), choice.steps
    ordered = {px: patch_file.values[px] for px in sorted(sides, reverse=True)}
    table = bundle.coding_table
    codes = encode_values(ordered, len(patch_file.classes), table, steps)
    decoded = replace(patch_file, values=decode_values(codes, table))  # what readers will run
    record = measure_task(bundle, decoded, calibration, score_float, progress)
    return add_task(
        bundle.path,
        patch_file,
        float_files=floats,
        float_scores=record.to_bytes(),
        steps=steps,
        release=release,
        thumbnails=thumbnails,
        replace_existing=replace_existing,
    )


def _describe_search(
    score: Score, patch_file: PatchFile, bundle: Bundle, coding: CodingConfig, images: int
) -> str:
    """How long `choose_steps` will take, from one score at the largest side: four of each
    convolution on the probe's images, and about `PASSES` of all images at every side."""
    px, begun = max(patch_file.values), time.perf_counter()
    score(px, patch_file.values[px])
    probes = 4 * len(bundle.coding_table.convs) * min(1.0, coding.probe_images / max(1, images))
    scores = probes + PASSES * sum((one / px) ** 2 for one in patch_file.values)
    seconds = max(1, round((time.perf_counter() - begun) * scores))
    return (
        f"{patch_file.task}: choosing coding steps inside {coding.points:g} points on {images} "
        f"images, about {seconds} s (fine steps need no search)"
    )


def _check_signing(signing: Signing | None, unsigned: bool) -> None:
    if (signing is None) != unsigned:
        given = "neither" if signing is None else "both"
        raise ConfigError(
            f"{given} of signing and unsigned given; a bundle pins the keys that its patches must "
            "be signed by, or says that it is for development; pass signing=Signing(...) or "
            "unsigned=True"
        )


def _check_names(tasks: Sequence[str]) -> None:
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if twice:
        raise AlreadyAttachedError(
            f"task {twice[0]!r} is there {tasks.count(twice[0])} times; a name stands for one "
            "task of a bundle; train one of them under another name"
        )


def export_patch(
    path: Path | str,
    base: Base,
    patch: Patch,
    calibration: ImageDataset,
    *,
    float_files: bool = False,
    config: CalibrationConfig | None = None,
    coding: CodingConfig | None = None,
    validation: ImageDataset | None = None,
    signing: Signing | None = None,
    replace_existing: bool = False,
    sequence: int | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Add a task to the bundle at ``path``, or replace one; the base's files keep their bytes.

    Args:
        signing: who signs; None only for a development bundle.
        coding, validation: see `export_bundle`.
        replace_existing: the task is there, and this is its next version.
        sequence: of the patch; by default one more than the bundle's patch of the task has, 1 where
            it has none.

    Raises:
        WrongBaseError: the bundle was exported from another base.
        AlreadyAttachedError: the bundle has a task of that name, which is not to be replaced.
        UnknownTaskError: it has none that could be.
        ConfigError: a ``sequence`` that is not above the one that is there.
        PatchdeployError: see `Exporter.quantize`; the bundle is as it was.
    """
    bundle = open_bundle(Path(path))
    manifest = bundle.manifest
    if not base.is_named(manifest.source_sha256, f"the bundle at {path}"):
        raise WrongBaseError(
            f"the bundle at {path} was exported from base {manifest.source_sha256[:16]}, the base "
            f"given is {base.sha256[:16]}; use the base that the bundle was exported from"
        )
    if replace_existing:
        bundle.task(patch.task)
    elif patch.task in manifest.tasks:
        raise AlreadyAttachedError(
            f"task {patch.task!r} is in bundle {path} already; a name stands for one task; train "
            "it under another name, replace that task or remove it"
        )
    number = next_sequence(bundle, patch.task, sequence)
    patch = recognise_patch(base, patch, EXPORT_REMEDY)
    capacity = manifest.layout.head_capacity
    check_patch(patch, base.sha256, capacity, calibration, config or CalibrationConfig())
    reference = bundle.reference()
    exporter = Exporter.prepare(
        base,
        head_capacity=capacity,
        depthwise_slots=len(reference.patch_owned) > 1,
        exact_border=any(one.name == IMAGE_IDENTITY for one in reference.graph.convolutions()),
        resolutions=manifest.resolutions,
    )
    patch_file = exporter.quantize(patch, calibration, manifest.resolutions, config, progress)
    floats = _floats(exporter, patch, manifest.resolutions, float_files)
    return _add(
        bundle,
        patch_file,
        calibration,
        floats,
        partial(exporter.score_float, patch),
        coding,
        validation,
        Release(number) if signing is None else signing.release(number),
        progress,
        replace_existing,
    )


def export_float(
    path: Path | str,
    base: Base,
    patch: Patch,
    *,
    format_name: str = "tflite",
    resolutions: Sequence[int] | None = None,
) -> None:
    """Write one task as a stand-alone float32 file, for GPU delegates and debugging.

    It shares nothing with other tasks or resolutions: one variant is folded into its kernels.

    Args:
        resolutions: one side in pixels; by default the patch's only one.

    Raises:
        ConfigError: no such converter, or several resolutions.
        UnknownResolutionError: the patch has no such variant.
        UnsupportedOperatorError, LoweringMismatchError: see `Exporter`.
    """
    patch = recognise_patch(base, patch, EXPORT_REMEDY)
    chosen = tuple(resolutions or patch.resolutions)
    if len(chosen) != 1:
        raise ConfigError(
            f"a float32 file of {patch.task!r} at {', '.join(map(str, chosen))} px; it holds one "
            "variant, folded into its kernels; name one resolution"
        )
    capacity = max(2, len(patch.classes))
    exporter = Exporter.prepare(base, head_capacity=capacity, resolutions=chosen)
    exporter.score_float(patch, chosen[0], make_pictures(chosen[0], COMPARED_IMAGES))
    network = exporter.fold(patch, chosen[0])
    write_atomic(Path(path), load_converter(format_name).write_float(network, chosen))


def _calibration_of(patch: Patch, calibration: Mapping[str, ImageDataset]) -> ImageDataset:
    if patch.task not in calibration:
        raise EmptyCalibrationError(
            f"task {patch.task!r} has no calibration images; there are some for "
            f"{', '.join(sorted(calibration)) or 'no task'}; pass its training images"
        )
    return calibration[patch.task]


def _floats(
    exporter: Exporter, patch: Patch, resolutions: Sequence[int], wanted: bool
) -> dict[str, Any]:
    if not wanted:
        return {}
    converter = load_converter("onnx")
    return {
        f"{patch.task}.{px}{converter.suffix}": converter.write_float(
            exporter.fold(patch, px), [px]
        )
        for px in resolutions
    }
