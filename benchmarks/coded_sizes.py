"""Bytes and test accuracy of one task, coded in every way that patch_bytes.py compares.

In: a `CodedTask`, a bundle of its base. Out: a plain record. Steps are chosen on held-out images;
test images only measure. A gap is the share of test images that the coded patch gets right less
that of a reference, image by image, with its standard error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
from coded_tasks import CodedTask, Log
from deltas import delta_bytes, zstd_alone_bytes
from entropy_coders import sizes_of, zlib_bytes
from numpy.typing import NDArray
from safetensors.numpy import save

from patchdeploy.bundle.reader import Bundle
from patchdeploy.coding.choose_steps import Choice, CodingConfig, Score, choose_steps
from patchdeploy.coding.decode import decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodedRows, CodingSteps
from patchdeploy.coding.probe import Costs, bias_exponents, divergence, probe_costs, softmax
from patchdeploy.convert import load_converter
from patchdeploy.export import Exporter
from patchdeploy.measure import Measurement, measure_interleaved
from patchdeploy.patchfile.pack import PackedPatch, pack_patch
from patchdeploy.patchfile.payload import decode_payload
from patchdeploy.quantize.model import neutral_variant
from patchdeploy.runtime.model_copy import ModelCopy
from patchdeploy.runtime.scoring import make_scorer
from patchdeploy.slots import PatchValues, overlay

Record = dict[str, Any]
FIRST_PARTS = ("steps", "activations", "scales", "biases")
"""Of the payload: what a scale-and-bias patch takes without its head."""
ANY_LOSS = 100.0
"""Points of validation that a curve's budgets may lose: their nats alone decide."""
PROBED = 200


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        budgets: of the curve, nats.
        uniform: (t, output steps) of the curve, the same in every convolution.
        deltas: formats whose whole files are compared.
    """

    budgets: tuple[float, ...]
    uniform: tuple[tuple[int, float], ...]
    deltas: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Workbench:
    """One task with all that measures it.

    Attributes:
        held, test, probed: scorers over those images.
    """

    task: CodedTask
    bundle: Bundle
    exporter: Exporter
    held: Score
    test: Score
    probed: Score

    @classmethod
    def of(cls, task: CodedTask, bundle: Bundle, exporter: Exporter) -> Workbench:
        classes = len(task.file.classes)
        held = task.pixels(task.held)
        few = np.linspace(0, len(task.held) - 1, min(PROBED, len(task.held))).astype(int)
        probed = {px: images[few] for px, images in held.items()}
        return cls(
            task=task,
            bundle=bundle,
            exporter=exporter,
            held=remembered(make_scorer(bundle, held, classes)),
            test=remembered(make_scorer(bundle, task.pixels(task.test), classes)),
            probed=make_scorer(bundle, probed, classes),
        )

    @property
    def first(self) -> int:
        """The resolution that others are coded against."""
        return self.task.plan.sides[0]

    @property
    def classes(self) -> int:
        return len(self.task.file.classes)

    def values(self, *sides: int) -> dict[int, PatchValues]:
        """The uncoded values."""
        return {px: self.task.file.values[px] for px in sides}

    def costs(self) -> Costs:
        """Probed once: budgets share it."""
        values = self.values(self.first)[self.first]
        table = self.exporter.table
        return probe_costs(self.first, values, self.classes, table, self.probed)

    def choose(self, sides: Sequence[int], config: CodingConfig, costs: Costs) -> Choice:
        """Steps from the held-out images."""
        labels = np.asarray(self.task.held.labels)
        table = self.exporter.table
        return choose_steps(self.values(*sides), labels, table, self.held, config, costs=costs)

    def pack(self, values: Mapping[int, PatchValues], steps: CodingSteps) -> PackedPatch:
        """The file, unsigned, for both runtimes."""
        file = replace(self.task.file, values=values, metrics={})
        return pack_patch(file, self.exporter.table, self.bundle.base_files(), steps=steps)

    def right(self, px: int, values: PatchValues) -> NDArray[np.bool_]:
        """bool [N]: which test images are right."""
        return np.asarray(self.test(px, values).argmax(1) == self.task.test.labels)

    def judge(self, px: int, values: PatchValues) -> Record:
        """Test top-1 in %, gaps to the uncoded values and to the float patch, divergence."""
        right = self.right(px, values)
        uncoded = self.task.file.values[px]
        chances = softmax(self.test(px, uncoded))
        return {
            "top1": float(100 * right.mean()),
            "to_uncoded": gap(right, self.right(px, uncoded)),
            "to_float": gap(right, self.task.float_right(px)),
            "nats": divergence(chances, self.test(px, values)),
        }


def remembered(score: Score) -> Score:
    """``score`` that runs the same values once."""
    known: dict[tuple[int, str], NDArray[np.float32]] = {}

    def call(px: int, values: PatchValues) -> NDArray[np.float32]:
        parts = b"".join(getattr(values, one.name).tobytes() for one in fields(values))
        key = (px, hashlib.sha256(parts).hexdigest())
        if key not in known:
            known[key] = score(px, values)
        return known[key]

    return call


def gap(right: NDArray[np.bool_], reference: NDArray[np.bool_]) -> dict[str, float]:
    """Points gained (negative: lost) and their standard error, paired by image."""
    difference = right.astype(np.float64) - reference.astype(np.float64)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return {"points": float(100 * difference.mean()), "error": float(100 * error)}


def measure_task(bench: Workbench, extent: Extent, log: Log) -> Record:
    """Everything about one task."""
    log("probing")
    costs = bench.costs()
    record: Record = {
        "held_images": len(bench.task.held),
        "test_images": len(bench.task.test),
        "classes": bench.classes,
        "uncoded": {str(px): bench.judge(px, v) for px, v in bench.task.file.values.items()},
        "float_right": bits_of(bench.task.float_right(bench.first)),
        "costs": {"scale": costs.scale.tolist(), "bias": costs.bias.tolist()},
    }
    log("choosing")
    choice = bench.choose(bench.task.plan.sides, CodingConfig(), costs)
    record["choice"] = _measure_choice(bench, choice)
    if extent.budgets:
        log("curve")
        record["curve"] = _measure_curve(bench, extent, costs)
        record["coders"] = _measure_coders(bench, choice)
    if extent.deltas:
        log("whole files")
        record["whole_files"] = _measure_files(bench, extent.deltas)
    return record


def _measure_choice(bench: Workbench, choice: Choice) -> Record:
    """The default budget at all resolutions, and what each further one adds."""
    whole = bench.pack(choice.values, choice.steps)
    sides = bench.task.plan.sides
    totals = [
        sum_parts(bench.pack({px: choice.values[px] for px in sides[: k + 1]}, choice.steps))
        for k in range(len(sides))
    ]
    return {
        "head_levels": choice.head_levels,
        "held_points": {str(px): value for px, value in choice.points.items()},
        "held_nats": {str(px): value for px, value in choice.nats.items()},
        "bytes": totals,
        "test": {str(px): bench.judge(px, v) for px, v in whole.patch.values.items()},
        "right": bits_of(bench.right(bench.first, whole.patch.values[bench.first])),
        "further_share": [
            (b["scale_bias"] - a["scale_bias"]) / totals[0]["scale_bias"]
            for a, b in pairwise(totals)
        ],
    }


def bits_of(right: NDArray[np.bool_]) -> str:
    """One character an image, so that runs over the same images can be paired."""
    return "".join("1" if one else "0" for one in right.tolist())


def sum_parts(packed: PackedPatch) -> dict[str, int]:
    """Bytes by part, of scales and biases together, and of the whole file."""
    parts = dict(packed.part_bytes)
    together = sum(parts[name] for name in FIRST_PARTS)
    return parts | {"scale_bias": together, "file": len(packed.data)}


def _measure_curve(bench: Workbench, extent: Extent, costs: Costs) -> list[Record]:
    """Points of accuracy against bytes, at the first resolution."""
    px = bench.first
    points = []
    for budget in extent.budgets:
        config = CodingConfig(points=ANY_LOSS, nats=budget)
        choice = bench.choose((px,), config, costs)
        points.append(_coded_point(bench, "budget", budget, choice.values, choice.steps))
    table, values = bench.exporter.table, bench.values(px)
    for t, output_steps in extent.uniform:
        exponents = bias_exponents(values, table, np.full(len(table.convs), output_steps))
        steps = CodingSteps((t,) * len(table.convs), exponents)
        points.append(_coded_point(bench, "uniform", f"{t}, {output_steps:g}", values, steps))
    return points + _plain_points(bench)


def _coded_point(
    bench: Workbench,
    kind: str,
    setting: object,
    values: Mapping[int, PatchValues],
    steps: CodingSteps,
) -> Record:
    packed = bench.pack(values, steps)
    bytes_ = sum_parts(packed)
    judged = bench.judge(bench.first, packed.patch.values[bench.first])
    return {
        "kind": kind,
        "setting": setting,
        "scale_bias": bytes_["scale_bias"],
        "head": bytes_["head"],
        **judged,
    }


# -- the same values in plain number formats -------------------------------------------------------


def _plain_points(bench: Workbench) -> list[Record]:
    """float16 and int8 for each value, as they are and deflated, and int32 and float32 slots."""
    table, px = bench.exporter.table, bench.first
    values = bench.task.file.values[px]
    rows = CodedRows.of(table, bench.classes)
    octaves, shifts = moved_by_training(values, rows)
    points = []
    for name, (restored, raw) in {
        "fp16": _as_half(octaves, shifts),
        "int8 per layer": _as_int8(octaves, shifts, rows),
    }.items():
        judged = bench.judge(px, rebuild(values, rows, *restored))
        for packing, size in (("", len(raw)), (", deflated", zlib_bytes(raw))):
            points.append({"kind": name + packing, "setting": "", "scale_bias": size, **judged})
    slots = {
        "weight_scale": np.delete(values.weight_scale, rows.spare),
        "bias": np.delete(values.bias, rows.spare),
        "activation_scale": values.activation_scale,
        "activation_zero_point": values.activation_zero_point,
    }
    plain, same = save(slots), bench.judge(px, values)
    sizes = {"": len(plain), ", deflated": zlib_bytes(plain), ", zstd": zstd_alone_bytes(plain)}
    return points + [
        {"kind": f"slot values{packing}", "setting": "", "scale_bias": size, **same}
        for packing, size in sizes.items()
        if size is not None
    ]


Moved = tuple[NDArray[np.float64], NDArray[np.float64]]


def moved_by_training(values: PatchValues, rows: CodedRows) -> Moved:
    """(octaves, shifts) float64 [rows]: what the format codes, before it is rounded."""
    scale = np.delete(values.weight_scale, rows.spare).astype(np.float64)
    bias = np.delete(values.bias, rows.spare)
    unit = values.activation_scale.astype(np.float64)[rows.x] * scale
    return np.log2(scale / rows.scale), bias * unit - rows.slope * scale - rows.beta


def rebuild(
    values: PatchValues, rows: CodedRows, octaves: NDArray[np.float64], shifts: NDArray[np.float64]
) -> PatchValues:
    """Slot values from rounded octaves and shifts; a bias beyond its limit is set to it."""
    scale = (rows.scale * np.exp2(octaves)).astype(np.float32)
    unit = values.activation_scale.astype(np.float64)[rows.x] * scale
    bias = np.rint((rows.beta + shifts + rows.slope * scale) / unit)
    weight_scale, all_biases = values.weight_scale.copy(), values.bias.copy()
    kept = np.delete(np.arange(len(weight_scale)), rows.spare)
    weight_scale[kept] = scale
    all_biases[kept] = np.clip(bias, -rows.limit, rows.limit).astype(np.int32)
    return replace(values, weight_scale=weight_scale, bias=all_biases)


def _as_half(octaves: NDArray[np.float64], shifts: NDArray[np.float64]) -> tuple[Moved, bytes]:
    half = np.concatenate([octaves, shifts]).astype(np.float16)
    planes = half.view(np.uint8).reshape(-1, 2).T
    wide = half.astype(np.float64)
    return (wide[: len(octaves)], wide[len(octaves) :]), np.ascontiguousarray(planes).tobytes()


def _as_int8(
    octaves: NDArray[np.float64], shifts: NDArray[np.float64], rows: CodedRows
) -> tuple[Moved, bytes]:
    count = int(rows.conv.max()) + 1
    restored, raw = [], []
    for one in (octaves, shifts):
        largest = np.zeros(count)
        np.maximum.at(largest, rows.conv, np.abs(one))
        step = np.maximum(largest / 127, 1e-30).astype(np.float32)
        wide = step.astype(np.float64)[rows.conv]
        codes = np.clip(np.rint(one / wide), -127, 127).astype(np.int8)
        restored.append(codes * wide)
        raw.append(step.tobytes() + codes.tobytes())
    return (restored[0], restored[1]), b"".join(raw)


# -- other coders, whole files, time ---------------------------------------------------------------


def _measure_coders(bench: Workbench, choice: Choice) -> Record:
    """The chosen codes by other coders, at the first resolution."""
    table, px = bench.exporter.table, bench.first
    values = {px: choice.values[px]}
    codes = encode_values(values, bench.classes, table, choice.steps).resolutions[px]
    conv = CodedRows.of(table, bench.classes).conv
    ends = [*(np.flatnonzero(np.diff(conv)) + 1).tolist(), len(conv)]
    head = codes.head.view(np.int8).astype(np.int64)
    row = len(head) // bench.classes
    return {
        "scales": sizes_of(codes.scales, ends),
        "biases": sizes_of(codes.biases, ends),
        "head": sizes_of(head, [row * (k + 1) for k in range(bench.classes)]),
    }


def _measure_files(bench: Workbench, formats: Sequence[str]) -> Record:
    """Deltas from a neutral int8 file of one resolution to this task's."""
    quantized, px = bench.exporter.quantized, bench.first
    found = {}
    for name in formats:
        written = load_converter(name).write(quantized, {px: neutral_variant(quantized, px)})
        new = bytes(overlay(written.data, written.table, bench.values(px)))
        found[name] = {"file": len(new), **delta_bytes(written.data, new)}
    return found


def measure_time(bench: Workbench, choice_steps: CodingSteps, rounds: int) -> Measurement:
    """Milliseconds to decode one resolution of the file, and to set the model's slots with it."""
    packed = bench.pack(bench.task.file.values, choice_steps)
    payload = packed.data[-packed.header.payload_bytes :]
    table, px = bench.exporter.table, bench.first
    base = bench.bundle.base_files()
    copies = {name: ModelCopy(*base[name]) for name in base}

    def decode() -> PatchValues:
        return decode_payload(payload, packed.header, table, px).values[px]

    values = decode()
    assert (
        values.bias.tobytes()
        == decode_values(
            encode_values(bench.task.file.values, bench.classes, table, choice_steps), table
        )[px].bias.tobytes()
    )
    calls: dict[str, Callable[[], object]] = {"decode": decode}
    for name, copy in copies.items():
        calls[f"decode and apply, {name}"] = lambda copy=copy: copy.render(decode(), px)
    return measure_interleaved(calls, 10, rounds)
